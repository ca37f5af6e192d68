"""Watchdogs on made-up figures, and in runs: each begins, keeps silent on noise and ends; a resume changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest

from gadjax.config import fields as configs
from gadjax.errors import UserError
from gadjax.metrics import MetricsLogger, read_metrics
from gadjax.train import run
from gadjax.trainer.watchdog_rules import RULES, TeacherLengths
from gadjax.trainer.watchdogs import BEGINS, COMPILING, ENDS, Watchdogs
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import untimed

TRAINS = {"generator/loss": 1.0}
CASES = [  # watchdog, stage, figure, as it should be, as it should not
    ("discriminator", "warmup", "discriminator/accuracy", 0.92, 0.99),
    ("discriminator", "gad", "discriminator/accuracy", 0.6, 0.01),
    ("length", "gad", "response/length_mean", 300.0, 620.0),
    ("length", "warmup", "response/length_mean", 300.0, 90.0),
    ("length", "gad", "response/truncated", 0.1, 0.4),
    ("kl", "gad", "generator/kl", 0.1, 0.6),
    ("kl", "gad", "generator/kl", 0.012, 0.15),  # a surge
    ("kl", "gad", "generator/kl", 0.004, 0.11),
    ("entropy", "gad", "generator/entropy", 1.2, 0.3),
    ("throughput", "gad", "speed/sampled_tokens_per_second", 7000.0, 3500.0),
    ("throughput", "seqkd", "speed/trained_tokens_per_second", 7000.0, 3500.0),
]
IDS = [f"{figure}={bad}" for _, _, figure, _, bad in CASES]


def said(stage, rows, teacher=None):
    """What the watchdogs say of a stage's rows, from step 1 on."""
    watchdogs = Watchdogs(teacher)
    found = [watchdogs.see(stage, step, TRAINS | row) for step, row in enumerate(rows, start=1)]
    return list(itertools.chain(*found))


@pytest.mark.parametrize(("watchdog", "stage", "figure", "good", "bad"), CASES, ids=IDS)
class TestEach:
    def test_begins_and_ends_once(self, watchdog, stage, figure, good, bad):
        values = [good] * 100 + [bad] * 100 + [good] * 100
        begins, ends = said(stage, ({figure: value} for value in values))
        assert (begins.watchdog, begins.state, begins.stage, begins.figure) == (watchdog, BEGINS, stage, figure)
        assert begins.since == 101
        assert 101 + 9 <= begins.step <= 101 + 40, "a sustained change, and not long after it"
        assert begins.value == pytest.approx(bad) or begins.value == pytest.approx((good + bad) / 2)
        assert f"{begins.value:.3g}" in begins.seen and "since step 101" in begins.seen
        assert f"{begins.limit:.3g}" in begins.seen and "config." in begins.advice
        assert begins.seen in begins.line() and begins.advice in begins.line()
        assert (ends.watchdog, ends.state, ends.since, ends.advice) == (watchdog, ENDS, 101, "")
        assert 200 < ends.step <= 240

    def test_noise_is_silent(self, watchdog, stage, figure, good, bad):
        values = [bad if step % 5 in (1, 3) else good for step in range(30, 300)]
        assert not said(stage, ({figure: value} for value in [good] * 30 + values))
        extreme = 1e9 if bad > good else -1e9
        values = [extreme if step % 19 == 5 else good for step in range(300)]
        assert not said(stage, ({figure: value} for value in values))

    def test_a_figure_that_hovers_about_the_limit_is_said_once(self, watchdog, stage, figure, good, bad):
        steady = [{figure: value} for value in [good] * 100 + [bad] * 100]
        limit = said(stage, steady)[0].limit
        hovering = [limit * (1.02 if step // 40 % 2 else 0.99 if bad > good else 1.05) for step in range(400)]
        assert len(said(stage, [*steady, *({figure: value} for value in hovering)])) == 1

    def test_a_stage_starts_afresh(self, watchdog, stage, figure, good, bad):
        watchdogs = Watchdogs()
        for step in range(1, 201):
            watchdogs.see(stage, step, TRAINS | {figure: good if step <= 100 else bad})
        assert set(watchdogs.standing(stage)) == {watchdog}
        other = "warmup" if stage == "gad" else "gad"
        assert watchdogs.standing(other) == {}
        assert watchdogs.see(other, 201, TRAINS | {figure: bad}) == []
        assert watchdogs.standing(other) == watchdogs.standing(stage) == {}


def test_a_likelihood_discriminator_may_always_be_right():
    watchdogs = Watchdogs(scalar=False)
    assert not any(watchdogs.see("gad", step, TRAINS | {"discriminator/accuracy": 1.0}) for step in range(200))
    assert any(watchdogs.see("gad", step, TRAINS | {"discriminator/accuracy": 0.0}) for step in range(200, 400))


def test_lengths_are_compared_with_the_teachers_too():
    grows = [{"response/length_mean": 100.0 if step < 50 else 170.0} for step in range(100)]
    (begins,) = said("warmup", grows)
    assert begins.limit == 150.0
    assert not said("warmup", grows, TeacherLengths(150.0, 0.0)), "the student grows to the teacher's length"
    always_cut = [{"response/length_mean": 64.0, "response/truncated": 1.0}] * 100
    assert not said("warmup", always_cut, TeacherLengths(22.0, 0.0)), "as from random weights"
    cut = [{"response/truncated": 0.1 if step < 50 else 0.4} for step in range(100)]
    assert [alert.figure for alert in said("gad", cut)] == ["response/truncated"]
    assert not said("gad", cut, TeacherLengths(150.0, 0.25))


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_a_kl_that_grows_from_nothing_is_no_surge(power):
    assert not said("gad", ({"generator/kl": 0.49 * (step / 800) ** power} for step in range(800)))


def test_compiling_is_not_slow():
    figure = "speed/trained_tokens_per_second"
    quick, slow = {figure: 7000.0, COMPILING: 0.0}, {figure: 500.0, COMPILING: 6.0}
    assert not said("gad", [quick] * 100 + [slow] * 100 + [quick] * 10)
    assert said("gad", [quick] * 100 + [slow | {COMPILING: 0.0}] * 100)


def test_steps_of_the_discriminator_alone_are_another_speed():
    figure, watchdogs = "speed/trained_tokens_per_second", Watchdogs()
    for step in range(100):
        assert watchdogs.see("warmup", step, {figure: 9000.0}) == []
    for step in range(100, 200):
        assert watchdogs.see("warmup", step, {figure: 4000.0} | TRAINS) == []
    slow = [watchdogs.see("warmup", step, {figure: 2000.0} | TRAINS) for step in range(200, 230)]
    assert [alert.watchdog for alert in itertools.chain(*slow)] == ["throughput"]


def test_figures_that_are_not_finite():
    assert not said("gad", [{"generator/kl": math.nan}] * 100)
    (begins,) = said("gad", [{"generator/kl": 0.01}] * 30 + [{"generator/kl": math.inf}] * 30)
    assert begins.value == math.inf


def test_a_slow_spell_does_not_become_the_usual_speed():
    figure = "speed/sampled_tokens_per_second"
    speeds = [7000.0] * 60 + [3000.0] * 600 + [7000.0] * 60 + [3000.0] * 60
    assert [alert.state for alert in said("gad", ({figure: speed} for speed in speeds))] == [BEGINS, ENDS, BEGINS]


def rows_of_a_run():
    """Of three stages in turn: warnings that begin, end, overlap and stand at a stage's end."""
    for step in range(1, 331):
        stage = "seqkd" if step <= 60 else "warmup" if step <= 150 else "gad"
        row = {"generator/entropy": 2.0 - (step > 250), "speed/trained_tokens_per_second": 1000.0 / 3 * (1 + step % 7)}
        if stage != "seqkd":
            row["discriminator/accuracy"] = 0.99 if 80 <= step <= 120 or step > 300 else 0.8
            row["response/length_mean"] = 100 / 3 + (step % 5) + 60 * (180 <= step <= 240)
            row["speed/sampled_tokens_per_second"] = 500.0 if 200 <= step <= 280 else 1100.0
        if stage == "gad":
            row["generator/kl"] = math.nan if step % 17 == 0 else 1e-3 * (step - 150) + 0.7 * (step > 260)
        yield step, stage, (row | TRAINS if step > 70 or stage == "seqkd" else row)


def follow(workdir, first, last, resume_step=None):
    """Logs steps as the trainer does; returns the lines said."""
    logger = MetricsLogger(workdir, tensorboard=False, resume_step=resume_step)
    watchdogs, lines = Watchdogs(TeacherLengths(30.0, 0.0)), []
    if resume_step is not None:
        watchdogs.replay(read_metrics(workdir / "metrics.jsonl"))
    for step, stage, row in rows_of_a_run():
        if first <= step <= last:
            for alert in watchdogs.see(stage, step, logger.log(step, stage, row)):
                logger.log_warning(step, stage, alert.watchdog, alert.row(), alert.line())
                lines.append(alert.line())
    logger.close()
    return lines, watchdogs.standing("gad")


def test_a_resumed_run_is_one_that_never_ended(tmp_path):
    (tmp_path / "whole").mkdir()
    lines, standing = follow(tmp_path / "whole", 1, 330)
    rows = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if row["kind"] == "warning"]
    assert {(row["watchdog"], row["state"]) for row in rows} >= {
        ("discriminator", BEGINS),
        ("discriminator", ENDS),
        ("length", ENDS),
        ("kl", BEGINS),
        ("throughput", ENDS),
    }
    assert len(lines) == len(rows) and "kl" in standing
    for saved in (30, 60, 61, 79, 101, 120, 150, 200, 215, 280, 329):
        workdir = tmp_path / str(saved)
        workdir.mkdir()
        follow(workdir, 1, min(saved + 25, 330))  # killed a while after its checkpoint
        _, resumed = follow(workdir, saved + 1, 330, resume_step=saved)
        assert resumed == standing
        whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        assert (workdir / "metrics.jsonl").read_bytes() == whole


def test_names_and_fields_exist():
    assert tuple(RULES) == configs.WATCHDOGS
    for condition in itertools.chain(*RULES.values()):
        for stage, advice in condition.advice.items():
            fields = re.findall(r"config\.([a-z_]+(?:\.[a-z_]+)?)", advice.format(stage=stage))
            assert set(fields) <= configs.FIELDS.keys() and stage in configs.STAGES


def test_a_run_has_the_figures_that_are_watched(finished_run):
    rows = read_metrics(finished_run.workdir / "metrics.jsonl")
    found = {(row["stage"], name) for row in rows if row["kind"] == "train" for name in row}
    stages = {stage for stage, _ in found}
    watched = {(s, c.figure) for c in itertools.chain(*RULES.values()) for s in c.advice if s in stages}
    assert stages == {"warmup", "gad"}
    assert watched | {("warmup", COMPILING), ("gad", COMPILING)} <= found


@pytest.fixture
def any_kl_is_too_much(monkeypatch):
    """The watchdog of the KL begins to warn at the second step of gad, and never ends."""
    (condition,) = RULES["kl"]
    condition = dataclasses.replace(condition, limit=lambda series, teacher: (-1.0, ""), window=2)
    monkeypatch.setitem(RULES, "kl", (condition,))


@pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs", "any_kl_is_too_much")
def test_stop_on(tiny_config, tmp_path, capsys):
    """Stopped with a checkpoint, and again where nothing changed; what goes on then is the run that did not stop."""
    fields = {"stages": ("gad",), "gad.steps": 3, "data.heldout": "", "log.tensorboard": True}
    stopping = tiny_config(fields | {"stop_on": ("length", "kl")})
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"stopped after step 2, which is saved \(config\.stop_on=kl\): .*no longer"
        ):
            run(stopping, stopped)
        assert Checkpoints(stopped).steps() == [2]
        rows = read_metrics(stopped / "metrics.jsonl")
        assert [(row["kind"], row["step"]) for row in rows] == [("train", 1), ("train", 2), ("warning", 2)]
    run(tiny_config(fields | {"stop_on": ("length",)}), stopped)
    assert capsys.readouterr().out.count("warning: GAD step 2, kl: the KL to the reference") == 1
    run(tiny_config(fields), whole)
    assert untimed(stopped) == untimed(whole)
