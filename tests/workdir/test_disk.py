"""Space on the disk is checked before the first step."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from gadjax.errors import UserError
from gadjax.setup.prepare import prepare_run
from gadjax.train import run
from gadjax.workdir import disk
from gadjax.workdir.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

FIELDS = {"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": "", "checkpoint.keep": 2, "export_dtype": "float32"}


class Usage(NamedTuple):
    free: int


def test_what_a_run_writes_is_what_it_asks_for(tiny_config, tmp_path, monkeypatch):
    """A full disk stops the run before any training. The space it asks for is what a checkpoint and the export take."""
    monkeypatch.setattr(disk, "_GB", 1)
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", lambda path: Usage(1000))
        with pytest.raises(UserError, match=r"1000.0 GB are free there.*lower config.checkpoint.keep") as error:
            run(tiny_config(FIELDS), tmp_path)
    assert Checkpoints(tmp_path).steps() == [] and not (tmp_path / "metrics.jsonl").exists()
    count, size, exports = map(
        float, re.search(r"(\d+) checkpoints of (\S+) GB, and exports of (\S+);", str(error.value)).groups()
    )
    assert count == 1  # the run has one step
    run(tiny_config(FIELDS), tmp_path)
    taken = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    assert 0.7 * size < taken < 1.3 * size  # compressed, and with the index of its arrays
    weights = (tmp_path / "export" / "generator" / "model.safetensors").stat().st_size
    assert 0.9 * weights < exports < 1.1 * weights


def test_checkpoints_that_are_there_have_their_room(tiny_config, heldout_file, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_GB", 1)
    run(tiny_config(FIELDS | {"checkpoint.every": 1, "seqkd.steps": 2}), tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0))
    with pytest.raises(UserError, match="1 checkpoints of"):
        run(tiny_config(FIELDS | {"seqkd.steps": 3}), tmp_path)
    more = FIELDS | {"seqkd.steps": 12, "checkpoint.keep": 1}
    with pytest.raises(UserError, match="1 checkpoints of"):
        run(tiny_config(more), tmp_path)
    with pytest.raises(UserError, match="6 checkpoints of"):  # 4, 6, 8, 10 and 12 stay
        run(tiny_config(more | {"checkpoint.keep_every": 2}), tmp_path)
    with pytest.raises(UserError, match="3 checkpoints of"):
        run(tiny_config(FIELDS | {"seqkd.steps": 12}), tmp_path / "new")
    assert not (tmp_path / "new").exists()  # nothing is written before
    measured = FIELDS | {"seqkd.steps": 12, "data.heldout": str(heldout_file), "checkpoint.best": "nll"}
    with pytest.raises(UserError, match="4 checkpoints of"):
        run(tiny_config(measured), tmp_path / "best")


def test_a_finished_run_needs_no_more_checkpoints(tiny_config, tmp_path, monkeypatch):
    """Its limit would allow two more checkpoints, but there are no more steps."""
    run(tiny_config(FIELDS), tmp_path)
    setup = prepare_run(tiny_config(FIELDS | {"checkpoint.keep": 3, "checkpoint.keep_every": 1}))
    monkeypatch.setattr(disk, "_GB", 1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0))
    with pytest.raises(UserError, match=r": 0 checkpoints of \S+ GB, and exports of"):
        disk.check_space(setup, tmp_path, [1])


def test_each_disk_is_checked_for_what_goes_there(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_GB", 1)
    away, workdir = tmp_path / "away", tmp_path / "run"
    away.mkdir()
    free = {away: 0, tmp_path: 10**12}
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(free[path]))
    setup = prepare_run(tiny_config(FIELDS | {"checkpoint.directory": str(away)}))
    with pytest.raises(UserError, match=r"^--workdir .*run.*: 1 checkpoints of .*, and exports of"):  # one disk
        free[tmp_path] = 0
        disk.check_space(setup, workdir, [])
    monkeypatch.setattr(disk, "_device", {away: 1, workdir: 2}.__getitem__)
    with pytest.raises(UserError, match=rf"^config\.checkpoint\.directory {away}: .*: 1 checkpoints of (?!.*exports)"):
        disk.check_space(setup, workdir, [])
    free[away] = 10**12
    with pytest.raises(UserError, match=rf"^--workdir {workdir}: .*: exports of (?!.*checkpoints of)"):
        disk.check_space(setup, workdir, [])
    free[tmp_path] = 10**12
    disk.check_space(setup, workdir, [])


def test_the_room_of_an_object_store_is_not_known(tiny_config, tmp_path, monkeypatch):
    setup = prepare_run(tiny_config(FIELDS | {"checkpoint.directory": "gs://bucket/run"}))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0))
    with pytest.raises(UserError, match=r"--workdir .*: exports of .* \(the room in gs://bucket/run is not known\)$"):
        disk.check_space(setup, tmp_path, [])


def test_old_checkpoints_make_room(tiny_config, tmp_path):
    fields = {"stages": ("seqkd",), "seqkd.steps": 4, "data.heldout": "", "checkpoint.every": 1, "checkpoint.keep": 2}
    run(tiny_config(fields), tmp_path)
    assert Checkpoints(tmp_path).steps() == [3, 4]
