"""checkpoint.directory: checkpoints in another folder, or an object store, while the logs stay in the workdir."""

from __future__ import annotations

import shutil

import fsspec
import pytest
from etils import epath
from etils.epath import backend, gpath

from gadjax.errors import UserError
from gadjax.evaluation.local_models import _contents, inspect
from gadjax.evaluation.model_sources import parse_source
from gadjax.setup.prepare import prepare_run
from gadjax.train import run
from gadjax.workdir import facts
from gadjax.workdir.checkpoints import Checkpoints, checkpoint_directory
from gadjax.workdir.facts import prepare_workdir
from gadjax.workdir.lock import WorkdirLock
from gadjax.workdir.place import OWNER, check_place, take_place
from gadjax.workdir.resume import check_workdir

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

FIELDS = {"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""}


def test_another_folder(tiny_config, tmp_path, command, capfd):
    """Commands that read the workdir find the checkpoints there, and no run starts anew without them."""
    away, workdir = tmp_path / "away", tmp_path / "run"
    fields = FIELDS | {"checkpoint.directory": str(away)}
    run(tiny_config(fields), workdir)
    out = capfd.readouterr().out.splitlines()
    assert f"checkpoints: {away}" in out and f"checkpoints    {away}" in out
    assert not (workdir / "checkpoints").exists() and (away / "1").is_dir()
    with pytest.raises(
        UserError, match=r"run/checkpoints has no checkpoint, but the run of .* has one of step 1 in .*away"
    ):
        run(tiny_config(FIELDS | {"seqkd.steps": 2}), workdir)
    run(tiny_config(fields | {"seqkd.steps": 2}), workdir)
    assert Checkpoints(workdir, directory=str(away)).steps() == [1, 2]
    done = command("gadjax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}")
    assert (done.status, done.out) == (0, f"step 2: {tmp_path / 'out' / 'generator'}\n"), done.err
    found = inspect(parse_source("run", str(workdir)))
    assert found.source.step == 2
    assert found.load().params
    refuse_others(prepare_run(tiny_config(fields | {"seqkd.steps": 3})), away, workdir)


def refuse_others(setup, away, workdir):
    """Neither another run nor a copy of this one can add checkpoints to these, and a missing folder is noticed."""
    other = workdir.with_name("other")
    owned = rf"away holds the checkpoints of --workdir {workdir}, not of .*/other: .* delete {away / OWNER}$"
    with pytest.raises(UserError, match=owned):  # another seed from one config, say
        check_workdir(setup, other)
    shutil.copytree(workdir, other)
    with pytest.raises(UserError, match=owned):
        check_workdir(setup, other)
    shutil.move(away, away.with_name("unmounted"))
    gone = r"the run of --workdir .*/run keeps its checkpoints in .*/away, which is gone: mount its disk"
    with pytest.raises(UserError, match=gone):
        check_workdir(setup, workdir)
    for directory in ("", str(workdir.with_name("new"))):
        with pytest.raises(UserError, match=gone):
            check_place(workdir, directory, [])
    away.mkdir()  # the empty folder that a disk is mounted on
    with pytest.raises(UserError, match=gone):
        check_workdir(setup, workdir)
    away.rmdir()
    shutil.move(away.with_name("unmounted"), away)
    assert check_workdir(setup, workdir) == [1, 2]
    (away / OWNER).unlink()
    with pytest.raises(UserError, match=r"away has checkpoints, but --workdir .*/empty is not that of their run"):
        check_workdir(setup, workdir.with_name("empty"))
    assert check_workdir(setup, other) == [1, 2]  # as if the workdir had been moved
    with WorkdirLock(other) as alone:
        prepare_workdir(setup, other, alone, begins=False)
    assert (away / OWNER).read_text() == f"{other}\n"


def test_newer_checkpoints_elsewhere(tmp_path):
    """The steps of the checkpoints in the new place count, not only whether there are any."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"checkpoint": {"directory": "old"}}')
    for place, steps in (("old", (2, 4)), ("new", (1, 2))):
        checkpoints = Checkpoints(workdir, directory=place, keep=9)
        for step in steps:
            checkpoints.save(step, {"x": 1.0}, {}, {})
        checkpoints.close()
    message = (
        r"newest checkpoint in .*run/new is of step 2, but the run of .* has one of step 4 in .*run/old: move them"
    )
    with pytest.raises(UserError, match=message):
        check_place(workdir, "new", [1, 2])
    check_place(workdir, "new", [1, 4])
    check_place(workdir, "old", [2, 4])


def test_a_workdir_that_moves_with_its_checkpoints(tmp_path):
    """The folder is in the workdir, so it needs no file that names its owner."""
    take_place(tmp_path / "run", "kept")
    assert list((tmp_path / "run" / "kept").iterdir()) == []
    shutil.move(tmp_path / "run", tmp_path / "moved")
    check_place(tmp_path / "moved", "kept", [])


def test_a_directory_that_cannot_be_made(tiny_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/away cannot be .* \(Not a directory\): .* config\.checkpoint\.directory"
    ):
        run(tiny_config(FIELDS | {"checkpoint.directory": str(tmp_path / "file" / "away")}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_directory_that_one_machine_alone_sees(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "_PATIENCE", 0)
    with pytest.raises(
        UserError, match=r"^config\.checkpoint\.directory /away is not a folder that all processes share"
    ):
        facts._wait_for(tmp_path / OWNER, "config.checkpoint.directory /away")


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("", "/runs/a/checkpoints"),
        ("kept", "/runs/a/kept"),
        ("/disk/a", "/disk/a"),
        ("gs://bucket/a", "gs://bucket/a"),
    ],
)
def test_where_they_are(tmp_path, given, place):
    workdir = tmp_path.__class__("/runs/a")
    assert str(checkpoint_directory(workdir, given)) == place
    assert str(checkpoint_directory(workdir, given) / "100").startswith(place + "/")


@pytest.fixture
def store(monkeypatch):
    """gs:// is in this process's memory. Its listings lack the gs://, like those of a real bucket."""

    class Memory(fsspec.get_filesystem_class("memory")):
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("gs://").strip("/")

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: Memory(skip_instance_cache=True))


def test_what_a_checkpoint_in_a_store_contains(store, tmp_path):
    """It is listed like a folder: by it evaluations know whether they have answers of this checkpoint already."""
    for folder in (epath.Path(tmp_path / "5"), epath.Path("gs://bucket/run/5")):
        for name, text in (("top", "a"), ("state/d/array", "bc"), ("state/_METADATA", "{}")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    found = list(_contents(epath.Path("gs://bucket/run/5")))
    assert found == list(_contents(epath.Path(tmp_path / "5")))
    assert [name for name, _, _ in found] == ["state/_METADATA", "state/d/array", "top"]


def test_a_store_belongs_to_one_run(store, tmp_path):
    take_place(tmp_path / "run", "gs://bucket/run")
    check_place(tmp_path / "run", "gs://bucket/run", [])
    with pytest.raises(UserError, match=rf"gs://bucket/run holds .* delete gs://bucket/run/{OWNER}$"):
        check_place(tmp_path / "other", "gs://bucket/run", [])


def test_a_workdir_in_an_object_store(tiny_config):
    message = r"--workdir=gs://bucket/run: .* local folder; .* --config\.checkpoint\.directory=gs://bucket/run$"
    with pytest.raises(UserError, match=message):
        run(tiny_config(), "gs://bucket/run")
