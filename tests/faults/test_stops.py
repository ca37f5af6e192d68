"""Runs that are told to stop, and checkpoints that are damaged: what goes on from there is the run that never ended."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal

import pytest

from gadjax.errors import Stopped, UserError
from gadjax.train import run
from gadjax.trainer import session
from gadjax.trainer.stage_steps import StageSteps
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import assert_same_run

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")


@pytest.fixture
def told_to_stop(monkeypatch):
    """Sends this process SIGTERM in the midst of a step of the run."""

    def tell(step: int) -> None:
        original = StageSteps.run

        def told(self, state, batch, stage_step, done):
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, state, batch, stage_step, done)

        monkeypatch.setattr(StageSteps, "run", told)

    return tell


@pytest.fixture
def copied(finished_run, tmp_path) -> pathlib.Path:
    """A copy of the finished run's workdir, without its exports."""
    return shutil.copytree(finished_run.workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("export"))


def test_sigterm(finished_run, tiny_config, rich_fields, told_to_stop, tmp_path):
    """In the first step and in a later stage: the step in progress is finished and saved; the handler is gone then."""
    before = signal.getsignal(signal.SIGTERM)
    config = tiny_config(rich_fields)
    for step in (0, 3):
        told_to_stop(step)
        saved = rf"^stopped and saved at step {step + 1}; the same command goes on from there$"
        with pytest.raises(Stopped, match=saved):
            run(config, tmp_path)
        assert Checkpoints(tmp_path).steps()[-1] == step + 1
        assert signal.getsignal(signal.SIGTERM) is before
    run(config, tmp_path)
    assert_same_run(tmp_path, finished_run.workdir)


def test_the_command_ends_with_a_status_of_its_own(command, tiny_config, told_to_stop, tmp_path, monkeypatch, repo):
    monkeypatch.chdir(repo)
    told_to_stop(1)
    config = tiny_config({"stages": ("seqkd",), "data.heldout": ""})
    (tmp_path / "config.py").write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    finished = command("gadjax.train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    assert finished.status == os.EX_TEMPFAIL == 75
    assert finished.err.splitlines()[-1] == "stopped and saved at step 2; the same command goes on from there"


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut_in_half(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "an array's file is cut": lambda place: cut_in_half(largest(place / "state")),
    "no state": lambda place: shutil.rmtree(place / "state"),
    "progress is cut": lambda place: cut_in_half(place / "progress" / "metadata"),
    "no replay": lambda place: shutil.rmtree(place / "replay"),
    "an array's file is gone": lambda place: largest(place / "state").unlink(),
    "bytes are others": lambda place: largest(place / "state").write_bytes(b"\0" * 1000),
    "no progress": lambda place: shutil.rmtree(place / "progress"),
    "nothing in it": lambda place: [shutil.rmtree(path) for path in place.iterdir() if path.is_dir()],
}


_QUICK = 4  # of them, the first; the others with -m slow


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's reads of other arrays
@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.slow] * (i >= _QUICK)) for i, name in enumerate(DAMAGES)]
)
def test_a_damaged_checkpoint(finished_run, copied, damage, capfd):
    """The one before serves, and says so; the damaged one stays, under another name."""
    last = Checkpoints(copied).steps()[-1]
    DAMAGES[damage](copied / "checkpoints" / str(last))
    run(finished_run.config, copied)
    assert f"warning: the checkpoint of step {last} is damaged" in capfd.readouterr().out
    assert (copied / "checkpoints" / f"{last}.damaged").is_dir()
    assert Checkpoints(copied).steps()[-1] == last
    assert_same_run(copied, finished_run.workdir)


def test_no_checkpoint_is_whole(finished_run, copied):
    for step in (steps := Checkpoints(copied).steps()):
        cut_in_half(largest(copied / "checkpoints" / str(step) / "state"))
    with pytest.raises(UserError, match=rf"checkpoints: no checkpoint can be read; the newest, of step {steps[-1]}, "):
        run(finished_run.config, copied)
    assert Checkpoints(copied).steps() == steps  # nothing is renamed


def test_no_checkpoint_says_where_it_stood(finished_run, copied, tiny_config, rich_fields):
    """Nothing of the workdir is replaced."""
    for step in Checkpoints(copied).steps():
        shutil.rmtree(copied / "checkpoints" / str(step) / "progress")
    before = (copied / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint says where its run stood; restore .*checkpoints from a copy"):
        run(tiny_config(rich_fields | {"seed": 5}), copied)
    assert (copied / "config.json").read_bytes() == before


def test_what_is_no_damage_is_raised(finished_run, copied, monkeypatch):
    """A machine that cannot read now leaves whole checkpoints where they are."""
    steps = Checkpoints(copied).steps()
    monkeypatch.setattr(Checkpoints, "state", lambda self, step, like: (_ for _ in ()).throw(OSError(116, "stale")))
    with pytest.raises(OSError, match="stale"):
        run(finished_run.config, copied)
    assert Checkpoints(copied).steps() == steps


def test_checkpoints_that_stay(tiny_config, tmp_path):
    """By the number of the run's step, whatever is due in a stage."""
    fields = {"stages": ("seqkd",), "seqkd.steps": 5, "data.heldout": ""}
    run(tiny_config(fields | {"checkpoint.every": 3, "checkpoint.keep": 1, "checkpoint.keep_every": 2}), tmp_path)
    assert Checkpoints(tmp_path).steps() == [2, 4, 5]


@pytest.mark.parametrize("moment", ["prepare_run", "export_network"])
def test_sigterm_outside_of_training(tiny_config, tmp_path, monkeypatch, moment):
    """Before the first step nothing is trained, and in the export the rest is left for later."""
    original = getattr(session, moment)

    def told(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(session, moment, told)
    fields = {"stages": ("warmup",), "warmup.steps": 1, "warmup.discriminator_only_steps": 0, "data.heldout": ""}
    with pytest.raises(Stopped, match="stopped"):
        run(tiny_config(fields), tmp_path)
    assert Checkpoints(tmp_path).steps() == ([] if moment == "prepare_run" else [1])
    assert (tmp_path / "export" / "generator").exists() == (moment == "export_network")
    assert not (tmp_path / "export" / "discriminator").exists()
