"""checkpoint.best: the checkpoint with the best held-out figure stays, and is found by that name."""

from __future__ import annotations

import pytest

from gadjax.evaluation.local_models import inspect
from gadjax.evaluation.model_sources import parse_source
from gadjax.metrics import read_metrics
from gadjax.parallel import processes
from gadjax.train import run
from gadjax.trainer.heldout import HeldOut
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import stop_before

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

# Of the measurement before training, and of those after steps 1 to 6.
NLL = (9.0, 3.0, 2.0, float("nan"), 1.0, 1.5, 1.25, 1.75)
ROUGE_L = (0.0, 0.9, 0.1, 0.1, 0.2, 0.5, 0.3, 0.4)
FIELDS = {
    "stages": ("seqkd",),
    "seqkd.steps": 6,
    "eval_every": 1,
    "checkpoint.every": 5,
    "checkpoint.keep": 1,
    "checkpoint.best": "nll",
}


@pytest.fixture
def measured(monkeypatch):
    """Measurements that give the figures of `NLL` and `ROUGE_L` in turn."""
    original, turn = HeldOut.figures, [0]

    def figures(self, *networks):
        found, answers = original(self, *networks)
        turn[0] += 1
        return found | {"nll": NLL[turn[0] - 1], "rouge_l": ROUGE_L[turn[0] - 1]}, answers

    monkeypatch.setattr(HeldOut, "figures", figures)
    return turn


@pytest.fixture
def saved(monkeypatch) -> list[int]:
    """The steps that a run saves."""
    steps, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *rest: (steps.append(step), save(self, step, *rest))[1])
    return steps


def test_the_best_stays(measured, saved, tiny_config, tmp_path, capfd, command):
    """It is saved when it is measured; no worse measurement is saved for itself, nor one that is not finite."""
    run(tiny_config(FIELDS), tmp_path / "run")
    assert saved == [1, 2, 4, 5, 6]
    assert Checkpoints(tmp_path / "run").steps() == [4, 6]
    line = capfd.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("Best checkpoint: step 4, nll 1; python -m gadjax.export --workdir=")
    assert line.endswith(" --step=best --out=DIR")
    done = command("gadjax.export", f"--workdir={tmp_path / 'run'}", "--step=best", f"--out={tmp_path / 'out'}")
    assert (done.status, done.out) == (0, f"step 4: {tmp_path / 'out' / 'generator'}\n"), done.err
    source = parse_source("best", f"{tmp_path / 'run'}@best")
    assert inspect(source).source.step == 4
    last = inspect(parse_source("last", str(tmp_path / "run"))).source.step
    assert last == 6


@pytest.mark.parametrize("moment", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_it_survives_interruption(measured, saved, tiny_config, tmp_path, moment):
    measured[0] = stop_before(tiny_config(FIELDS), tmp_path, moment)[-1] + 1
    run(tiny_config(FIELDS), tmp_path)
    checkpoints = Checkpoints(tmp_path, best="nll")
    assert (checkpoints.steps(), checkpoints.best()) == ([4, 6], (4, 1.0))
    heldout = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "heldout"]
    assert [line["step"] for line in heldout] == [0, 1, 2, 3, 4, 5, 6]


def test_another_figure_may_be_asked_for_later(measured, tiny_config, tmp_path):
    """Of the checkpoints that are there, the best by the new figure stays."""
    run(tiny_config(FIELDS | {"checkpoint.keep": 3}), tmp_path)
    assert Checkpoints(tmp_path).steps() == [4, 5, 6]
    assert Checkpoints(tmp_path, best="rouge_l").best() == (5, 0.5)  # step 1's is gone
    run(tiny_config(FIELDS | {"checkpoint.best": "rouge_l", "seqkd.steps": 7}), tmp_path)
    assert Checkpoints(tmp_path).steps() == [5, 7]
    heldout = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "heldout"]
    logged = {line["step"]: line["heldout/rouge_l"] for line in heldout}
    assert (logged[5], logged[7]) == (0.5, 0.4)


def test_the_first_process_says_whether_it_is_better(measured, saved, tiny_config, tmp_path, monkeypatch):
    """Another one whose figures differed in their last bit would wait in a save for ever."""
    asked = []
    monkeypatch.setattr(processes, "as_first_says", lambda value: (asked.append(value), False)[1])
    run(tiny_config(FIELDS), tmp_path)
    assert asked == [True, True, False, True]  # steps 5 and 6 are saved anyway
    assert saved == [5, 6]


def test_steps_that_are_none(command, tiny_config, tmp_path):
    """Nothing was measured, so that nothing is the best; and a name that is neither."""
    run(tiny_config(FIELDS | {"checkpoint.best": "", "data.heldout": "", "seqkd.steps": 1}), tmp_path / "run")
    export = lambda step: command(  # noqa: E731
        "gadjax.export", f"--workdir={tmp_path / 'run'}", f"--step={step}", f"--out={tmp_path / 'out'}"
    )
    folder = tmp_path / "run" / "checkpoints"
    message = f"error: {folder}: no checkpoint is the best, as the run has no config.checkpoint.best\n"
    done = export("best")
    assert (done.status, done.err) == (2, message)
    done = export("newest")
    assert (done.status, done.err) == (2, "error: --step=newest: expected a number of steps, last or best\n")
