"""Watchdogs: what a run's figures warn of, from what step on, and what to try.

Pure Python over the training rows of `metrics.jsonl`, in their order. All that is remembered follows from those rows,
so a run that continues reads its own again and goes on as one that never ended: nothing is forgotten or said twice.
Every stage starts afresh, and its end ends what still stands, without a word.

A row of metrics.jsonl, at a step where a warning begins ("begins") or ends ("ends"):

    {"kind": "warning", "stage": "gad", "step": 312, "watchdog": "kl", "state": "begins", "since": 303,
     "figure": "generator/kl", "value": 0.71, "limit": 0.5, "seen": "the KL to ...", "advice": "lower config.gad. ..."}

A watchdog looks at the median of a figure's last steps, of which fewer than half may be noise. It begins to warn when
that passes a limit, and ends when it is well back inside. The names are those that `config.stop_on` takes:

  discriminator  it tells student from teacher nearly always, or never: no signal is left in its scores
  length         answers grow, shrink or are cut far beyond the stage's start and the teacher's: reward hacking
  kl             the policy runs from the one that entered the stage
  entropy        the policy is about to say one thing only
  throughput     tokens a second fall against the stage's own; steps that compile do not count
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from gadjax.metrics import BEGINS, ENDS
from gadjax.stage_table import stage_title

COMPILING = "seconds/compile"  # of a step; above 0 where it compiled
_SPEED = "speed/"  # prefix of the figures that compiling spoils

_START = 10  # steps whose median is "the stage's start": at the paper's learning rates the policy has hardly moved
_KNOWN = 10  # steps before the window that make a usual value, of a figure that has one from the first step on
_GROWN = 50  # and of the KL, which starts at 0 and grows as some power of the steps: its median is of half-way
_WINDOW = 20  # steps of the median: 2.5 % of the paper's warmup, and a third of the demo's gad
_LONG = 40  # the discriminator's: accuracy of 0.9 and above early in warmup is normal, and it passes through 0.98 too
_ALWAYS, _NEVER = 0.98, 0.02  # accuracy; of 2048 pairs a step (the paper's batch) its noise is 0.003 there
_LONGER, _SHORTER = 1.5, 1 / 3  # of the mean length; the demo's steps reach 1.4 by noise
_CUT = 0.2  # more answers, as a share of all, that reach the limit
_KL = 0.5  # nats a token, by which log-probabilities differ on average; the demo stays below 0.2
_SURGE, _SMALL = 10, 0.1  # or so many times the usual; below the second, in nats a token, nothing is amiss
_COLLAPSED = 0.3  # of the entropy at the start; GAD seeks modes, so some of it goes in every run
_SLOWER = 0.6  # of the usual tokens a second; other lengths of answers alone move it by a quarter

_CALMER = "lower config.{stage}.generator_learning_rate"
_HACKED = "read samples.jsonl: answers that please the discriminator without being better call for "


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher's answers that the run learns from.

    Attributes:
      length_mean: in tokens.
      truncated: share that was cut at `data.max_response_length`.
    """

    length_mean: float
    truncated: float


@dataclasses.dataclass(frozen=True)
class Alert:
    """What a watchdog has to say after a step.

    Attributes:
      watchdog: its name.
      state: `BEGINS` or `ENDS`.
      stage, step: of the run, over all stages.
      since: the step from which on the figure is, or was, past the limit.
      figure: its name in metrics.jsonl.
      value: median of its last steps.
      limit: that the value is past, or back inside of.
      seen: all of this in words.
      advice: what to try, with config fields by name; empty at the end.
    """

    watchdog: str
    state: str
    stage: str
    step: int
    since: int
    figure: str
    value: float
    limit: float
    seen: str
    advice: str

    def line(self) -> str:
        """For the terminal and for TensorBoard."""
        head = "warning" if self.state == BEGINS else "warning ends"
        text = f"{head}: {stage_title(self.stage)} step {self.step}, {self.watchdog}: {self.seen}"
        return f"{text}. To try: {self.advice}" if self.advice else text

    def row(self) -> dict[str, Any]:
        """Its row of metrics.jsonl, without what every row has."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("stage", "step")}


class Watchdogs:
    """All of them, over a run."""

    def __init__(self, teacher: Teacher | None = None):
        """`teacher`: None compares lengths with the stage's start alone."""
        self._teacher = teacher
        self._enter("")

    def see(self, stage: str, step: int, figures: Mapping[str, float]) -> list[Alert]:
        """Takes a step's figures, as a row of metrics.jsonl has them; returns what begins or ends with it."""
        if stage != self._stage:
            self._enter(stage)
        self._note_work("generator/loss" in figures)
        for watchdog, conditions in WATCHDOGS.items():
            for figure, window in {(condition.figure, condition.window) for condition in conditions}:
                value = figures.get(figure, math.nan)
                compiled = figure.startswith(_SPEED) and figures.get(COMPILING, 0) > 0
                if not math.isnan(value) and not compiled and (series := self._series.get((figure, window))):
                    series.add(step, value, usual=watchdog not in self._standing)
        return [alert for watchdog in WATCHDOGS if (alert := self._look(watchdog, step))]

    def replay(self, records: list[dict[str, Any]]) -> None:
        """Takes the rows of a run that continues (`gadjax.metrics.read_metrics`); what they warned of is said."""
        for record in records:
            if record["kind"] == "train":
                self.see(record["stage"], record["step"], record)

    def standing(self, stage: str) -> dict[str, Alert]:
        """By watchdog, the warnings of a stage that have begun and not ended."""
        return {name: alert for name, (_, alert) in self._standing.items()} if stage == self._stage else {}

    def _enter(self, stage: str) -> None:
        self._stage, self._trains = stage, None
        self._standing: dict[str, tuple[Condition, Alert]] = {}
        watched = [c for conditions in WATCHDOGS.values() for c in conditions if stage in c.advice]
        self._series = {(c.figure, c.window): _Series(c.window) for c in watched}

    def _note_work(self, trains: bool) -> None:
        """Warmup's first steps train the discriminator alone, at a speed that the others do not compare with."""
        if trains != self._trains:
            self._trains = trains
            self._standing.pop("throughput", None)
            restarted = {key: _Series(key[1]) for key in self._series if key[0].startswith(_SPEED)}
            self._series |= restarted

    def _look(self, watchdog: str, step: int) -> Alert | None:
        if watchdog in self._standing:
            return self._ended(watchdog, step)
        for condition in WATCHDOGS[watchdog]:
            if self._stage in condition.advice and (begun := self._begun(watchdog, condition, step)):
                self._standing[watchdog] = condition, begun
                return begun
        return None

    def _begun(self, watchdog: str, condition: Condition, step: int) -> Alert | None:
        series = self._series[condition.figure, condition.window]
        limit, why = condition.limit(series, self._teacher)
        value = series.median()
        if value is None or math.isnan(limit) or not condition.past(value, limit):
            return None
        since = next(at for at, found in series.window if condition.past(found, limit))
        side = "above" if condition.above else "below"
        seen = (
            f"{condition.what} is {value:.3g} (median of {condition.window} steps), {side} {limit:.3g}{why} "
            f"since step {since}"
        )
        advice = condition.advice[self._stage].format(stage=self._stage)
        return Alert(watchdog, BEGINS, self._stage, step, since, condition.figure, value, limit, seen, advice)

    def _ended(self, watchdog: str, step: int) -> Alert | None:
        condition, begun = self._standing[watchdog]
        value = self._series[condition.figure, condition.window].median()
        if condition.past(value, begun.limit * condition.relief):
            return None
        del self._standing[watchdog]
        side = "below" if condition.above else "above"
        seen = (
            f"{condition.what} is {value:.3g} again, {side} {begun.limit:.3g}; it had not been since step {begun.since}"
        )
        return dataclasses.replace(begun, state=ENDS, step=step, value=value, seen=seen, advice="")


class _Series:
    """A figure in a stage."""

    def __init__(self, window: int):
        self.window: collections.deque[tuple[int, float]] = collections.deque(maxlen=window)
        self._first: list[float] = []
        self._before: list[float] = []  # sorted

    def add(self, step: int, value: float, *, usual: bool) -> None:
        """`usual`: whether what leaves the window counts for the usual value."""
        if len(self._first) < _START:
            self._first.append(value)
        if usual and len(self.window) == self.window.maxlen:
            bisect.insort(self._before, self.window[0][1])
        self.window.append((step, value))

    def median(self) -> float | None:
        """Of the last steps; None before there are enough."""
        full = len(self.window) == self.window.maxlen
        return statistics.median(value for _, value in self.window) if full else None

    def start(self) -> float:
        """Of the stage's first steps, which are no more than a window holds."""
        return statistics.median(self._first) if self._first else math.nan

    def usual(self, known: int) -> float:
        """Median of the steps before the window, as long as nothing warned; NaN before so many are known."""
        return self._before[len(self._before) // 2] if len(self._before) >= known else math.nan


Limit = Callable[[_Series, Teacher | None], tuple[float, str]]  # NaN: not known yet; and where it comes from, in words


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a watchdog looks for.

    Attributes:
      figure: its name in metrics.jsonl.
      what: its name in words.
      limit: that it passes.
      above: whether it is passed upwards.
      relief: times the limit, where the warning ends.
      advice: what to try, by the stages that are watched.
      window: steps of the median.
    """

    figure: str
    what: str
    limit: Limit
    above: bool
    relief: float
    advice: Mapping[str, str]
    window: int = _WINDOW

    def past(self, value: float, limit: float) -> bool:
        """Whether a value is on the wrong side."""
        return value > limit if self.above else value < limit


def _fixed(limit: float) -> Limit:
    return lambda series, teacher: (limit, "")


def _against(figure: str, pick: Callable[..., float], limit: Callable[[float], float], words: str) -> Limit:
    """A limit by the stage's start and the teacher's `figure`, of which `pick` takes one: the looser."""

    def against(series: _Series, teacher: Teacher | None) -> tuple[float, str]:
        known = {"the stage's start": series.start()}
        if teacher is not None:
            known["the teacher's"] = getattr(teacher, figure)
        told = " and ".join(f"{name}, {value:.3g}," for name, value in known.items())
        return limit(pick(known.values())), f" ({words} {told.rstrip(',')})"

    return against


_longer = _against("length_mean", max, lambda most: _LONGER * most, f"{_LONGER:g} times the larger of")
_shorter = _against("length_mean", min, lambda least: _SHORTER * least, "a third of the smaller of")
_cut = _against("truncated", max, lambda most: _CUT + most, f"{_CUT:g} over the larger of")


def _surge(series: _Series, teacher: Teacher | None) -> tuple[float, str]:
    usual = series.usual(_GROWN)
    if math.isnan(usual) or _SURGE * usual >= _KL:
        return _KL, ""
    if _SURGE * usual < _SMALL:
        return _SMALL, f" (it was {usual:.2g})"
    return _SURGE * usual, f" ({_SURGE} times the stage's median, {usual:.2g})"


def _collapsed(series: _Series, teacher: Teacher | None) -> tuple[float, str]:
    return _COLLAPSED * series.start(), f" ({_COLLAPSED:g} times the stage's start, {series.start():.3g})"


def _slower(series: _Series, teacher: Teacher | None) -> tuple[float, str]:
    usual = series.usual(_KNOWN)
    return _SLOWER * usual, f" ({_SLOWER:g} times the stage's median, {usual:.3g})"


def _both(warmup: str, gad: str) -> dict[str, str]:
    return {"warmup": warmup, "gad": gad}


_WINS = (
    "lower config.{stage}.discriminator_learning_rate or config.discriminator.updates_per_step, replay past samples "
    "(config.discriminator.replay_size)"
)
_LOSES = (
    "raise config.{stage}.discriminator_learning_rate or config.discriminator.updates_per_step, replay past samples "
    "(config.discriminator.replay_size), and see that config.{stage}.train_discriminator is on"
)
_LOOSE = _HACKED + (
    "config.gad.train_discriminator=True, a higher config.gad.kl_coefficient, a lower "
    "config.gad.generator_learning_rate or a config.gad.sft_coefficient above 0"
)
_FRESH = "discriminator/accuracy", "the discriminator's accuracy on fresh samples"
_LENGTH = "response/length_mean", "answers, mean length in tokens,"
_TEACHING = _CALMER + ", and see that the teacher's answers are what you expect"
_ENDLESS = "see that the teacher's answers fit config.data.max_response_length, so that the student learns to end; "
_BUSY = "see what else the machine does, and where the time goes with --profile=STEP; "
_UPDATES = _BUSY + "config.micro_batches.tokens and config.row_length decide how full the updates' rows are"
WATCHDOGS: dict[str, tuple[Condition, ...]] = {
    "discriminator": (
        Condition(
            *_FRESH,
            _fixed(_ALWAYS),
            True,
            0.95 / _ALWAYS,
            _both(
                _WINS + ", or end warmup earlier (config.warmup.steps)",
                _WINS + ", and hold the student with config.gad.sft_coefficient above 0",
            ),
            _LONG,
        ),
        Condition(*_FRESH, _fixed(_NEVER), False, 0.05 / _NEVER, _both(_LOSES, _LOSES), _LONG),
    ),
    "length": (
        Condition(
            *_LENGTH,
            _longer,
            True,
            0.9,
            _both(_TEACHING, _LOOSE + '; config.gad.aggregation="constant" has no bias by length'),
        ),
        Condition(*_LENGTH, _shorter, False, 1.1, _both(_TEACHING, _LOOSE)),
        Condition(
            "response/truncated",
            "answers cut at the limit, as a share,",
            _cut,
            True,
            0.8,
            _both(_ENDLESS + _CALMER, _ENDLESS + _LOOSE),
        ),
    ),
    "kl": (
        Condition(
            "generator/kl",
            "the KL to the reference, in nats a token,",
            _surge,
            True,
            0.8,
            {
                "gad": _CALMER + ", raise config.gad.kl_coefficient, or use fewer updates of a rollout "
                "(config.gad.ppo_epochs, config.gad.ppo_minibatches)"
            },
        ),
    ),
    "entropy": (
        Condition(
            "generator/entropy",
            "the policy's entropy, in nats a token,",
            _collapsed,
            False,
            1.2,
            {
                "gad": "raise config.gad.entropy_coefficient, config.gad.kl_coefficient or config.rollout.temperature, "
                "or " + _CALMER
            },
        ),
    ),
    "throughput": (
        Condition(
            "speed/sampled_tokens_per_second",
            "sampling, in tokens a second,",
            _slower,
            False,
            1.2,
            dict.fromkeys(
                ("warmup", "gad"),
                _BUSY
                + "with config.rollout.slots below batch_size * num_samples, the place of an answer that ended is "
                "taken by the next",
            ),
        ),
        Condition(
            "speed/trained_tokens_per_second",
            "training, in tokens a second,",
            _slower,
            False,
            1.2,
            dict.fromkeys(("seqkd", "warmup", "gad"), _UPDATES),
        ),
    ),
}
