"""What TensorBoard reads of a run, and what Weights & Biases is given."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.metric_views import Sample
from gadjax.metrics import MetricsLogger


def read_events(folder):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, float(e.tensor_proto.float_val[0])) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def read_texts(folder):
    """The texts of TensorBoard's text dashboard: (step, Markdown) by tag."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
    }


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = MetricsLogger(tmp_path)
    for step in (1, 2):
        logger.log(step, "gad", {"generator/loss": step / 2, "tokens": 10 * step})
        logger.log_heldout(step, "gad", {"nll": float(step)})
    expected = {
        "generator/loss": [(1, 0.5), (2, 1.0)],
        "tokens": [(1, 10.0), (2, 20.0)],
        "heldout/nll": [(1, 1.0), (2, 2.0)],
        "stage": [(1, 1.0), (2, 1.0)],
    }
    assert read_events(tmp_path / "tensorboard") == expected, "the events are there while the run goes on"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("generator/loss")] == [(1, 0.5), (2, 1.0)]


def test_tensorboard_shows_a_few_answers_as_they_are_each_prompt_under_its_own_tag(tmp_path):
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    logger = MetricsLogger(tmp_path)
    for step, stage in ((0, "before"), (2, "gad")):
        answers = (
            Sample(row, "<b>two</b>\n\n```lines```", f"*teacher* {row}", f"student {step} 好") for row in range(9)
        )
        logger.show_samples(step, stage, answers)
    texts = read_texts(tmp_path / "tensorboard")
    assert set(texts) == {f"samples/row {row}" for row in range(4)}
    ((first, _), (step, text)) = texts["samples/row 3"]
    assert (first, step) == (0, 2)
    html = text_array_to_html(np.array(text.encode()), enable_markdown=True)
    assert html.count("<code>") == 3
    for part in ("&lt;b&gt;two&lt;/b&gt;\n\n```lines```", "*teacher* 3", "student 2 好", "student, gad, step 2"):
        assert part in html


def test_tensorboard_shows_the_config_once(tmp_path):
    config = {"stages": ["warmup", "gad"], "seed": 3}
    MetricsLogger(tmp_path, config=config).close()
    MetricsLogger(tmp_path, config=config | {"seed": 4}, resume_step=0).close()
    ((step, text),) = read_texts(tmp_path / "tensorboard")["config"]
    assert step == 0 and json.loads(text.strip("`")) == config
    MetricsLogger(tmp_path, config=config | {"seed": 5}).close()  # starts over
    ((_, text),) = read_texts(tmp_path / "tensorboard")["config"]
    assert json.loads(text.strip("`"))["seed"] == 5


def test_a_run_that_turns_tensorboard_on_later_shows_its_config_too(tmp_path):
    MetricsLogger(tmp_path, tensorboard=False, config={"seed": 3}).close()
    MetricsLogger(tmp_path, config={"seed": 3}, resume_step=0).close()
    assert [step for step, _ in read_texts(tmp_path / "tensorboard")["config"]] == [0]


def test_tensorboard_marks_where_stages_begin(tmp_path):
    """Also of a run that goes on from a checkpoint before the second stage began, or after it."""
    stages = ["warmup"] * 2 + ["gad"] * 3

    def go_on(resume_step):
        logger = MetricsLogger(tmp_path, resume_step=resume_step)
        logger.log_heldout(resume_step or 0, "before" if resume_step is None else "heldout", {"nll": 1.0})
        for step, stage in enumerate(stages[resume_step or 0 :], start=1 + (resume_step or 0)):
            logger.log(step, stage, {"a": 1.0})
        logger.close()

    for resume_step in (None, 1, 4):
        go_on(resume_step)
        texts = read_texts(tmp_path / "tensorboard")["stages"]
        assert texts == [(1, "stage 1, warmup, begins with step 1"), (3, "stage 2, gad, begins with step 3")]
        numbers = read_events(tmp_path / "tensorboard")["stage"]
        assert numbers == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_wandb_gets_figures_only(tmp_path, wandb_runs):
    logger = MetricsLogger(tmp_path, tensorboard=False, wandb={"project": "p"})
    logger.log_warning(1, "gad", "kl", {}, "warning")
    logger.show_samples(1, "gad", [Sample(0, "p", "t", "s")])
    assert wandb_runs[0].logged == []
    logger.log(1, "gad", {"a": 1.0})
    assert wandb_runs[0].logged == [(1, {"a": 1.0, "stage": "gad"})]


@pytest.mark.parametrize(("resume_step", "expected"), [(2, [(1, 1.0), (2, 2.0), (3, -3.0)]), (None, [(3, -3.0)])])
def test_events_past_the_checkpoint_are_dropped_on_resume(tmp_path, resume_step, expected):
    logger = MetricsLogger(tmp_path)
    for step in range(1, 6):
        logger.log(step, "gad", {"a": step})
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.write_bytes(first.read_bytes()[:-5])  # as a killed run leaves it
    MetricsLogger(tmp_path, resume_step=resume_step).log(3, "gad", {"a": -3})
    assert read_events(tmp_path / "tensorboard")["a"] == expected


def test_metrics_import_neither_tensorflow_nor_torch(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('tensorflow is imported')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from gadjax.metrics import MetricsLogger
assert 'tensorboard' not in sys.modules
logger = MetricsLogger({str(tmp_path)!r})
logger.log(1, 'gad', {{'a': 1.0}})
logger.close()
assert not {{'tensorflow', 'torch'}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class FakeRun:
    def __init__(self, **arguments):
        self.arguments, self.logged, self.finished = arguments, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch):
    """Runs that a stand-in for the wandb package was asked for."""
    runs = []

    def init(**arguments):
        runs.append(FakeRun(**arguments))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=ConnectionError))
    return runs


def test_wandb_gets_the_figures(tmp_path, wandb_runs):
    logger = MetricsLogger(tmp_path, tensorboard=False, wandb={"project": "p", "config": {"seed": 1}})
    logger.log(4, "gad", {"a": np.float32(0.5)})
    logger.log_heldout(4, "gad", {"nll": 2.0})
    logger.close()
    (run,) = wandb_runs
    assert (run.arguments["project"], run.arguments["config"]) == ("p", {"seed": 1})
    assert run.logged == [(4, {"a": 0.5, "stage": "gad"}), (4, {"heldout/nll": 2.0, "stage": "gad"})]
    assert run.finished


def test_wandb_continues_the_same_run_on_resume_only(tmp_path, wandb_runs):
    for resume_step in (None, 3, None):
        MetricsLogger(tmp_path, tensorboard=False, wandb={"project": "p"}, resume_step=resume_step)
    first, resumed, fresh = (run.arguments["id"] for run in wandb_runs)
    assert first == resumed != fresh
    assert wandb_runs[1].arguments["resume"] == "allow"


def test_wandb_that_is_missing_or_refuses(tmp_path, monkeypatch, wandb_runs):
    def refuse(**_):
        raise ConnectionError("no api key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match=r"no api key.*wandb login"):
        MetricsLogger(tmp_path, wandb={"project": "p"})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsLogger(tmp_path, wandb={"project": "p"})
