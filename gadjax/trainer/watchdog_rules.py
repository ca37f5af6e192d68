"""The rules of the watchdogs: which figures they look at, which limits warn, and what to try.

Each rule compares the median of a figure's last steps with a limit. The names of the watchdogs are those that
`config.stop_on` takes:

  discriminator  it tells student from teacher nearly always, or never: its scores carry no signal any more
  length         answers grow, shrink or are cut far beyond the stage's start and the teacher's: reward hacking
  kl             the policy runs away from the one that entered the stage
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

SPEED = "speed/"  # prefix of the figures that compiling spoils

_START = 10  # steps whose median is "the stage's start": at the paper's learning rates the policy has hardly moved
_KNOWN = 10  # steps before the window that make a usual value of a figure
_GROWN = 50  # the same for the KL, which starts at 0 and grows as some power of the steps
_WINDOW = 20  # steps of a median: 2.5 % of the paper's warmup, and a third of the demo's gad
_LONG = 40  # the same for the discriminator: accuracy of 0.9 and above early in warmup is normal
_ALWAYS, _NEVER = 0.98, 0.02  # accuracy; its noise over the 2048 pairs of a step of the paper is 0.003 there
_LONGER, _SHORTER = 1.5, 1 / 3  # factors of the mean length; the demo's steps reach 1.4 by noise
_CUT = 0.2  # how much the share of answers that reach the limit may grow
_KL = 0.5  # nats a token; the demo stays below 0.2
_SURGE, _SMALL = 10, 0.1  # times the usual KL; below the second, in nats a token, nothing is amiss
_COLLAPSED = 0.3  # of the entropy at the start; GAD seeks modes, so some entropy goes in every run
_SLOWER = 0.6  # of the usual tokens a second; other lengths of answers alone move them by a quarter


@dataclasses.dataclass(frozen=True)
class TeacherLengths:
    """Lengths of the teacher's answers that the run learns from.

    Attributes:
      length_mean: mean length in tokens.
      truncated: share of the answers that was cut at `data.max_response_length`.
    """

    length_mean: float
    truncated: float


class Series:
    """A figure over the steps of a stage."""

    def __init__(self, window: int):
        self.window: collections.deque[tuple[int, float]] = collections.deque(maxlen=window)
        self._first: list[float] = []
        self._before: list[float] = []  # sorted

    def add(self, step: int, value: float, *, usual: bool) -> None:
        """Adds a step. `usual`: whether the value that leaves the window counts for the usual value."""
        if len(self._first) < _START:
            self._first.append(value)
        if usual and len(self.window) == self.window.maxlen:
            bisect.insort(self._before, self.window[0][1])
        self.window.append((step, value))

    def median(self) -> float | None:
        """The median over the window; None before the window is full."""
        full = len(self.window) == self.window.maxlen
        return statistics.median(value for _, value in self.window) if full else None

    def start(self) -> float:
        """The median over the first steps of the stage; NaN before there are any."""
        return statistics.median(self._first) if self._first else math.nan

    def usual(self, known: int) -> float:
        """The median over the steps before the window that no warning covers; NaN where fewer than `known` are."""
        return self._before[len(self._before) // 2] if len(self._before) >= known else math.nan


# A limit, NaN where it is not known yet, and where it comes from, in words.
Limit = Callable[[Series, TeacherLengths | None], tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that a watchdog looks for.

    Attributes:
      figure: the figure's name in metrics.jsonl.
      what: the figure in words.
      limit: the limit that warns.
      above: True where values above the limit are bad, False where values below it are.
      relief: the warning ends at this factor times the limit.
      advice: what to try, for each stage that is watched.
      window: steps of the median.
      scalar: whether it holds for a scalar head alone.
    """

    figure: str
    what: str
    limit: Limit
    above: bool
    relief: float
    advice: Mapping[str, str]
    window: int = _WINDOW
    scalar: bool = False

    def past(self, value: float, limit: float) -> bool:
        """Whether a value is on the bad side of a limit."""
        return value > limit if self.above else value < limit


def _fixed(limit: float) -> Limit:
    return lambda series, teacher: (limit, "")


def _against(figure: str, pick: Callable[..., float], limit: Callable[[float], float], words: str) -> Limit:
    """A limit from two values, the stage's start and the teacher's `figure`; `pick` takes the looser one."""

    def against(series: Series, teacher: TeacherLengths | None) -> tuple[float, str]:
        known = {"the stage's start": series.start()}
        if teacher is not None:
            known["the teacher's"] = getattr(teacher, figure)
        told = " and ".join(f"{name}, {value:.3g}," for name, value in known.items())
        return limit(pick(known.values())), f" ({words} {told.rstrip(',')})"

    return against


def _surge(series: Series, teacher: TeacherLengths | None) -> tuple[float, str]:
    usual = series.usual(_GROWN)
    if math.isnan(usual) or _SURGE * usual >= _KL:
        return _KL, ""
    if _SURGE * usual < _SMALL:
        return _SMALL, f" (it was {usual:.2g})"
    return _SURGE * usual, f" ({_SURGE} times the stage's median, {usual:.2g})"


def _collapsed(series: Series, teacher: TeacherLengths | None) -> tuple[float, str]:
    return _COLLAPSED * series.start(), f" ({_COLLAPSED:g} times the stage's start, {series.start():.3g})"


def _slower(series: Series, teacher: TeacherLengths | None) -> tuple[float, str]:
    usual = series.usual(_KNOWN)
    return _SLOWER * usual, f" ({_SLOWER:g} times the stage's median, {usual:.3g})"


_longer = _against("length_mean", max, lambda most: _LONGER * most, f"{_LONGER:g} times the larger of")
_shorter = _against("length_mean", min, lambda least: _SHORTER * least, "a third of the smaller of")
_cut = _against("truncated", max, lambda most: _CUT + most, f"{_CUT:g} over the larger of")


def _both(warmup: str, gad: str) -> dict[str, str]:
    return {"warmup": warmup, "gad": gad}


def _lengths(warmup: str, gad: str) -> dict[str, str]:
    return {"soda": _CLOSER, **_both(warmup, gad)}


_CALMER = "lower config.{stage}.generator_learning_rate"
_CLOSER = "raise config.soda.beta, lower config.soda.generator_learning_rate, or end the stage earlier"
_HACKED = "read samples.jsonl: answers that please the discriminator without being better call for "


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
RULES: dict[str, tuple[Rule, ...]] = {
    "discriminator": (
        Rule(
            *_FRESH,
            _fixed(_ALWAYS),
            True,
            0.95 / _ALWAYS,
            _both(
                _WINS + ", or end warmup earlier (config.warmup.steps)",
                _WINS + ", and hold the student with config.gad.sft_coefficient above 0",
            ),
            _LONG,
            scalar=True,  # a likelihood discriminator that is always right still says how wrong each token is
        ),
        Rule(*_FRESH, _fixed(_NEVER), False, 0.05 / _NEVER, _both(_LOSES, _LOSES), _LONG),
    ),
    "length": (
        Rule(
            *_LENGTH,
            _longer,
            True,
            0.9,
            _lengths(_TEACHING, _LOOSE + '; config.gad.aggregation="constant" has no bias by length'),
        ),
        Rule(*_LENGTH, _shorter, False, 1.1, _lengths(_TEACHING, _LOOSE)),
        Rule(
            "response/truncated",
            "answers cut at the limit, as a share,",
            _cut,
            True,
            0.8,
            _lengths(_ENDLESS + _CALMER, _ENDLESS + _LOOSE),
        ),
    ),
    "kl": (
        Rule(
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
        Rule(
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
        Rule(
            "speed/sampled_tokens_per_second",
            "sampling, in tokens a second,",
            _slower,
            False,
            1.2,
            dict.fromkeys(
                ("soda", "warmup", "gad"),
                _BUSY
                + "with config.rollout.slots below batch_size * num_samples, the place of an answer that ended is "
                "taken by the next",
            ),
        ),
        Rule(
            "speed/trained_tokens_per_second",
            "training, in tokens a second,",
            _slower,
            False,
            1.2,
            dict.fromkeys(("seqkd", "soda", "warmup", "gad"), _UPDATES),
        ),
    ),
}
