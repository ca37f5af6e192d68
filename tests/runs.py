"""Runs in their workdirs: what those that are one and the same have in common, and one that is interrupted."""

from __future__ import annotations

import pathlib

import pytest
from ml_collections import ConfigDict

from gadjax.metrics import read_metrics
from gadjax.train import run
from gadjax.trainer.stage_steps import StageSteps
from gadjax.workdir.checkpoints import Checkpoints

TIMED = ("seconds/", "speed/")  # begin the names of figures that no two runs share


class Gone(Exception):
    """The machine was taken away."""


def stop_before(config: ConfigDict, workdir: pathlib.Path, step: int, error: type[BaseException] = Gone) -> list[int]:
    """Runs a config until this many steps are done, and raises in the next; gives the workdir's checkpoints then."""
    original = StageSteps.run

    def limited(self, state, batch, stage_step, done):
        if done == step:
            raise error
        return original(self, state, batch, stage_step, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageSteps, "run", limited)
        with pytest.raises(error):
            run(config, workdir)
    return Checkpoints(workdir).steps()


def untimed(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without times and speeds."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(TIMED)} for line in records]


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """To the last digit of every figure, times aside, and to the last bit of the exported weights."""
    assert untimed(workdir) == untimed(other)
    exports = [path.relative_to(other) for path in sorted(other.glob("export/*/model.safetensors"))]
    assert exports
    for weights in exports:
        assert (workdir / weights).read_bytes() == (other / weights).read_bytes()
