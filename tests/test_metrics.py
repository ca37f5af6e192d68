"""The record of a run: strict lines, each step once across resumes, events that TensorBoard reads."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.metric_views import Sample
from gadjax.metrics import MetricsLogger, SampleLog, read_heldout, read_metrics, read_stages


def steps(path):
    return [(record["kind"], record["step"]) for record in read_metrics(path)]


def write_run(workdir, last, **options):
    """Logs steps 1 to `last`, held-out figures at 0 and after every second step."""
    logger = MetricsLogger(workdir, tensorboard=False, **options)
    logger.log_heldout(0, "before", {"nll": 3.0})
    for step in range(1, last + 1):
        logger.log(step, "warmup", {"generator/loss": 1 / step})
        if step % 2 == 0:
            logger.log_heldout(step, "warmup", {"nll": 3 - step / 10})
    logger.close()


def test_a_line_holds_kind_stage_step_and_figures(tmp_path):
    logger = MetricsLogger(tmp_path, tensorboard=False)
    figures = {
        "generator/loss": np.float32(0.1),
        "reward/mean": jnp.float32(-2),
        "tokens": np.int64(7),
        "seconds/rollout": 1.5,
    }
    logger.log(3, "gad", figures)
    line = (tmp_path / "metrics.jsonl").read_text()  # before the file is closed
    assert line == (
        '{"kind": "train", "stage": "gad", "step": 3, "generator/loss": 0.100000001, "reward/mean": -2.0, '
        '"tokens": 7, "seconds/rollout": 1.5}\n'
    )


def test_figures_that_are_not_finite_stay_strict_json(tmp_path):
    logger = MetricsLogger(tmp_path)
    logger.log(1, "gad", {"a": np.float32("nan"), "b": math.inf, "c": -math.inf, "d": 1.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert [record[name] for name in "abcd"] == [None, None, None, 1.0]
    assert record["nonfinite"] == {"a": "nan", "b": "inf", "c": "-inf"}
    (read,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(read["a"]) and read["b"] == math.inf and read["c"] == -math.inf
    assert "nonfinite" not in read


def test_what_is_no_number_is_refused(tmp_path):
    logger = MetricsLogger(tmp_path, tensorboard=False)
    with pytest.raises(TypeError, match="generator/loss"):
        logger.log(1, "gad", {"generator/loss": "0.1"})


def test_each_step_stands_once(tmp_path):
    write_run(tmp_path, 4)
    logger = MetricsLogger(tmp_path, tensorboard=False, resume_step=4)
    with pytest.raises(ValueError, match="step 4 after those of step 4"):
        logger.log(4, "warmup", {})
    with pytest.raises(ValueError, match="heldout figures of step 4"):
        logger.log_heldout(4, "gad", {})
    logger.log(5, "gad", {})
    with pytest.raises(ValueError, match="step 5"):
        logger.log(5, "gad", {})


def test_resuming_removes_what_lies_past_the_checkpoint(tmp_path):
    write_run(tmp_path, 5)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    logger = MetricsLogger(tmp_path, tensorboard=False, resume_step=3)
    logger.log(4, "warmup", {"generator/loss": 9})
    after = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert after[:-1] == before[:5]
    assert steps(tmp_path / "metrics.jsonl")[2:] == [("train", 2), ("heldout", 2), ("train", 3), ("train", 4)]


def test_a_run_without_a_checkpoint_starts_over(tmp_path):
    write_run(tmp_path, 5)
    write_run(tmp_path, 1)
    assert steps(tmp_path / "metrics.jsonl") == [("heldout", 0), ("train", 1)]


@pytest.mark.parametrize(
    "torn", [b'{"kind": "train", "st', b'{"kind": "train", "stage": "gad", "step": 3}', b"\xe5\x00"]
)
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_run(tmp_path, 2)
    with path.open("ab") as file:
        file.write(torn)
    assert len(read_metrics(path)) == 4
    MetricsLogger(tmp_path, tensorboard=False, resume_step=9).log(10, "gad", {})
    assert steps(path) == [("heldout", 0), ("train", 1), ("train", 2), ("heldout", 2), ("train", 10)]


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": 2}', "\x00"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "stage": "gad", "step": 1}\n' + line + "\n")
    for read in (lambda: read_metrics(path), lambda: MetricsLogger(tmp_path, resume_step=1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not a record"):
            read()
    assert path.read_text().endswith(line + "\n"), "a file that is not understood is left alone"


def test_metrics_of_no_run(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_read_heldout_takes_the_last_of_each_stage(tmp_path):
    write_run(tmp_path, 4)
    MetricsLogger(tmp_path, tensorboard=False, resume_step=4).log_heldout(6, "gad", {"nll": np.nan, "rouge_l": 0.5})
    figures = read_heldout(tmp_path / "metrics.jsonl")
    assert list(figures) == ["before", "warmup", "gad"]
    assert figures["before"] == {"nll": 3.0}
    assert figures["warmup"] == {"nll": 2.6}
    assert math.isnan(figures["gad"]["nll"]) and figures["gad"]["rouge_l"] == 0.5


def test_what_was_known_at_a_step(tmp_path):
    """Steps by stage and held-out figures of the record up to there, for a checkpoint of that step."""
    write_run(tmp_path, 4)
    logger = MetricsLogger(tmp_path, tensorboard=False, resume_step=4)
    for step in (5, 6):
        logger.log(step, "gad", {})
    logger.log_heldout(6, "gad", {"nll": 1.0})
    path = tmp_path / "metrics.jsonl"
    cases = {
        6: ({"warmup": 4, "gad": 2}, {"before": 3.0, "warmup": 2.6, "gad": 1.0}),
        5: ({"warmup": 4, "gad": 1}, {"before": 3.0, "warmup": 2.6}),
        3: ({"warmup": 3}, {"before": 3.0, "warmup": 2.8}),
    }
    for step, (stages, nll) in cases.items():
        assert list(read_stages(path, last_step=step).items()) == list(stages.items())
        found = read_heldout(path, last_step=step)
        assert {stage: figures["nll"] for stage, figures in found.items()} == nll


def test_other_processes_write_nothing(tmp_path):
    logger = MetricsLogger(tmp_path, write=False, wandb={"project": "p"})
    samples = SampleLog(tmp_path, write=False)
    logger.log(1, "gad", {"a": 1})
    logger.log_heldout(1, "gad", {"a": 1})
    logger.show_samples(1, "gad", [Sample(0, "p", "t", "s")])
    samples.log(1, "gad", Sample(0, "p", "t", "s"))
    logger.close()
    samples.close()
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_rows_and_texts_and_no_figures(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    logger = MetricsLogger(tmp_path)
    logger.log(1, "gad", {"generator/kl": 0.75})
    logger.log_warning(1, "gad", "kl", {"state": "begins", "value": math.inf}, "warning: α")
    logger.log_heldout(1, "gad", {"nll": 2.0})
    path = tmp_path / "metrics.jsonl"
    assert steps(path) == [("train", 1), ("warning", 1), ("heldout", 1)]
    row = {"kind": "warning", "stage": "gad", "step": 1, "watchdog": "kl", "state": "begins", "value": math.inf}
    assert read_metrics(path)[1] == row
    assert read_stages(path, last_step=1) == {"gad": 1}
    assert read_heldout(path) == {"gad": {"nll": 2.0}}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Tensors("warning/kl")
    assert (event.step, list(event.tensor_proto.string_val)) == (1, ["warning: α".encode()])
    assert events.SummaryMetadata("warning/kl").plugin_data.plugin_name == "text"
    MetricsLogger(tmp_path, resume_step=0)
    assert steps(path) == [], "warnings past a checkpoint are said again"


def test_a_log_that_cannot_open_lets_go_of_its_file(tmp_path, monkeypatch):
    """A notebook keeps the error, and with it the logger: the cell that runs again must not find the file locked."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError) as kept:
        MetricsLogger(tmp_path, tensorboard=False, wandb={"project": "p"})
    assert kept.traceback
    MetricsLogger(tmp_path, tensorboard=False).close()


def test_samples_hold_the_texts_as_they_are(tmp_path):
    samples = SampleLog(tmp_path)
    samples.log(0, "before", Sample(12, "two\nlines\u2028and more", '"quoted" 好', ""))
    (line,) = (tmp_path / "samples.jsonl").read_bytes().splitlines()
    assert json.loads(line) == {
        "step": 0,
        "stage": "before",
        "row": 12,
        "prompt": "two\nlines\u2028and more",
        "teacher": '"quoted" 好',
        "student": "",
    }
    assert "好".encode() in line, "readable without unescaping"


def test_samples_past_the_checkpoint_are_removed(tmp_path):
    samples = SampleLog(tmp_path)
    for step in (0, 2, 4):
        for row in (1, 2):
            samples.log(step, "gad", Sample(row, "p", "t", f"s{step}"))
    SampleLog(tmp_path, resume_step=2).log(4, "gad", Sample(1, "p", "t", "again"))
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["row"], r["student"]) for r in records] == [
        (0, 1, "s0"),
        (0, 2, "s0"),
        (2, 1, "s2"),
        (2, 2, "s2"),
        (4, 1, "again"),
    ]
