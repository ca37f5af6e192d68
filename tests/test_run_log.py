"""gadjax.read_run: a run's logs as tables."""

from __future__ import annotations

import json
import math
import pathlib
import sys

import pytest

import gadjax
from gadjax.errors import UserError
from gadjax.metric_views import Sample
from gadjax.metrics import BEGINS, MetricsLogger, SampleLog

pytestmark = pytest.mark.quick


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
    """A run of two steps, as the trainer logs it."""
    (tmp_path / "config.json").write_text(json.dumps({"gad": {"clip": 0.2}}))
    logger, samples = MetricsLogger(tmp_path, tensorboard=False), SampleLog(tmp_path)
    logger.log_heldout(0, "before", {"nll": 5.5})
    logger.log(1, "warmup", {"discriminator/loss": 0.5})
    logger.log(2, "gad", {"discriminator/loss": 0.25, "generator/loss": math.inf})
    logger.log_heldout(2, "gad", {"nll": 2.5, "rouge_l": 0.5})
    samples.log(0, "before", Sample(7, "a prompt", "the teacher's", "the student's"))
    for log in (logger, samples):
        log.close()
    return tmp_path


def test_a_table_of_each_kind(workdir):
    pytest.importorskip("pandas")
    log = gadjax.read_run(workdir)
    assert log.config == {"gad": {"clip": 0.2}}
    assert list(log.train.columns) == ["stage", "step", "discriminator/loss", "generator/loss"]
    assert list(log.train.step) == [1, 2] and list(log.train["discriminator/loss"]) == [0.5, 0.25]
    assert math.isnan(log.train["generator/loss"][0]) and log.train["generator/loss"][1] == math.inf
    assert log.heldout.set_index("stage").nll.to_dict() == {"before": 5.5, "gad": 2.5}
    assert log.samples.to_dict("records") == [
        {
            "stage": "before",
            "step": 0,
            "row": 7,
            "prompt": "a prompt",
            "teacher": "the teacher's",
            "student": "the student's",
        }
    ]
    assert log.warnings.empty and list(log.warnings.columns) == ["stage", "step"]
    assert repr(log) == "RunLog(train: 2 rows, heldout: 2 rows, warnings: 0 rows, samples: 1 rows)"


def test_warnings(workdir):
    pytest.importorskip("pandas")
    logger = MetricsLogger(workdir, tensorboard=False, resume_step=2)
    logger.log_warning(2, "gad", "kl", {"state": BEGINS}, "the KL explodes")
    logger.close()
    (row,) = gadjax.read_run(workdir).warnings.to_dict("records")
    assert row == {"stage": "gad", "step": 2, "watchdog": "kl", "state": BEGINS}


def test_a_run_that_trains_has_a_torn_line(workdir):
    """The last one is left out until it is whole."""
    pytest.importorskip("pandas")
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert len(gadjax.read_run(workdir).train) == 2


def test_without_pandas(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"which is absent: pip install 'gadjax\[notebook\]'"):
        gadjax.read_run(workdir)


def test_no_run(tmp_path):
    pytest.importorskip("pandas")
    with pytest.raises(UserError, match=r"is not the workdir of a run: no config\.json"):
        gadjax.read_run(tmp_path)
