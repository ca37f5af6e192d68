"""Ctrl-C in a run: the first one ends and saves the step, the second ends the run at once."""

from __future__ import annotations

import os
import signal

import pytest

from gadjax.train import run
from gadjax.trainer.preemption import StopRequest
from gadjax.trainer.stage_steps import StageSteps
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import assert_same_run

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")


@pytest.fixture
def ctrl_c(monkeypatch):
    """Sends this process SIGINT so many times in the midst of a step, as a terminal does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest may ignore it

    def press(step: int, times: int = 1) -> None:
        original = StageSteps.run

        def pressed(self, state, batch, stage_step, done):
            for _ in range(times if done == step else 0):
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, state, batch, stage_step, done)

        monkeypatch.setattr(StageSteps, "run", pressed)

    yield press
    signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_saves_the_step(finished_run, tiny_config, rich_fields, ctrl_c, tmp_path, capfd):
    config = tiny_config(rich_fields | {"checkpoint.every": 100})
    ctrl_c(1)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped and saved at step 2; the same command goes on from there$"):
        run(config, tmp_path)
    assert "Ctrl-C again stops it now" in capfd.readouterr().err
    assert Checkpoints(tmp_path).steps() == [2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(config, tmp_path)
    assert_same_run(tmp_path, finished_run.workdir)


def test_the_second_ctrl_c_does_not_wait(tiny_config, ctrl_c, tmp_path):
    ctrl_c(1, times=2)
    with pytest.raises(KeyboardInterrupt) as ended:
        run(tiny_config({"stages": ("seqkd",), "data.heldout": "", "checkpoint.every": 100}), tmp_path)
    assert str(ended.value) == "" and Checkpoints(tmp_path).steps() == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.minding_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.interrupted and not stop.is_set()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
