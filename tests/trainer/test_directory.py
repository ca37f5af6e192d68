"""checkpoint.directory: checkpoints in another folder, or an object store, while the logs stay in the workdir."""

from __future__ import annotations

import sys

import pytest

from gadjax.checkpoint import Checkpoints, checkpoint_directory
from gadjax.errors import UserError
from gadjax.evaluation.networks import inspect
from gadjax.evaluation.sources import parse_source
from gadjax.train import run

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")

FIELDS = {"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""}


def test_another_folder(tiny_config, tmp_path, command, capfd):
    """Who reads the workdir finds them there, and nobody begins anew without them."""
    away, workdir = tmp_path / "away", tmp_path / "run"
    fields = FIELDS | {"checkpoint.directory": str(away)}
    run(tiny_config(fields), workdir)
    assert f"checkpoints: {away}" in capfd.readouterr().out.splitlines()
    assert not (workdir / "checkpoints").exists() and (away / "1").is_dir()
    with pytest.raises(UserError, match=r"no checkpoint in .*run/checkpoints, but the run of .* has some in .*away"):
        run(tiny_config(FIELDS | {"seqkd.steps": 2}), workdir)
    run(tiny_config(fields | {"seqkd.steps": 2}), workdir)
    assert Checkpoints(workdir, directory=str(away)).steps() == [1, 2]
    done = command("gadjax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}")
    assert (done.status, done.out) == (0, f"step 2: {tmp_path / 'out' / 'generator'}\n"), done.err
    found = inspect(parse_source("run", str(workdir)))
    assert found.source.step == 2
    assert found.load().params
    with pytest.raises(UserError, match=r"away has checkpoints, but --workdir .*/other is not that of their run"):
        run(tiny_config(fields), tmp_path / "other")


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("", "/runs/a/checkpoints"),
        ("kept", "/runs/a/kept"),
        ("/disk/a", "/disk/a"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
    ],
)
def test_where_they_are(tmp_path, given, place):
    workdir = tmp_path.__class__("/runs/a")
    assert str(checkpoint_directory(workdir, given)) == place
    assert str(checkpoint_directory(workdir, given) / "100").startswith(place + "/")


def test_what_reads_an_object_store_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"config\.checkpoint\.directory is gs://bucket/run: .*gcsfs"):
        Checkpoints(tmp_path, directory="gs://bucket/run", keep=1)


def test_a_workdir_in_an_object_store(tiny_config):
    message = r"--workdir=gs://bucket/run: .* local folder; .* --config\.checkpoint\.directory=gs://bucket/run$"
    with pytest.raises(UserError, match=message):
        run(tiny_config(), "gs://bucket/run")
