"""Watchdogs: warnings about a run's figures as they come, by the rules of `gadjax.trainer.watchdog_rules`.

They read the training rows of `metrics.jsonl` in their order. All that they remember follows from those rows, so a run
that continues reads its own rows again: nothing is forgotten or said twice. Every stage starts afresh, and warnings
that are still open at its end are dropped, without a row.

A watchdog begins to warn when the median of a figure's last steps passes a limit, and ends when the median is well back
inside. Both are rows of metrics.jsonl ("state" is "begins" or "ends"):

    {"kind": "warning", "stage": "gad", "step": 312, "watchdog": "kl", "state": "begins", "since": 303,
     "figure": "generator/kl", "value": 0.71, "limit": 0.5, "seen": "the KL to ...", "advice": "lower config.gad. ..."}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gadjax.metrics import BEGINS, ENDS
from gadjax.stage_table import stage_title
from gadjax.trainer.watchdog_rules import RULES, SPEED, Rule, Series, TeacherLengths

COMPILING = "seconds/compile"  # a figure of each step; above 0 where the step compiled


@dataclasses.dataclass(frozen=True)
class Alert:
    """A warning that begins or ends.

    Attributes:
      watchdog: the watchdog's name.
      state: `BEGINS` or `ENDS`.
      stage: the stage of the run.
      step: the step of the run, counted over all stages.
      since: the step from which on the figure is, or was, past the limit.
      figure: the figure's name in metrics.jsonl.
      value: the median of its last steps.
      limit: the limit that the value passed, or is back inside of.
      seen: all of this in words.
      advice: what to try, with config fields by name; empty where the warning ends.
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
        """One line for the terminal and for TensorBoard."""
        head = "warning" if self.state == BEGINS else "warning ends"
        text = f"{head}: {stage_title(self.stage)} step {self.step}, {self.watchdog}: {self.seen}"
        return f"{text}. To try: {self.advice}" if self.advice else text

    def row(self) -> dict[str, Any]:
        """The fields of its row in metrics.jsonl, without those that every row has."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("stage", "step")}


class Watchdogs:
    """All watchdogs over a run."""

    def __init__(self, teacher: TeacherLengths | None = None, *, scalar: bool = True):
        """
        Args:
          teacher: None compares lengths with the stage's start alone.
          scalar: whether the discriminator is a scalar head.
        """
        self._teacher = teacher
        self._rules = {
            name: tuple(rule for rule in rules if scalar or not rule.scalar) for name, rules in RULES.items()
        }
        self._enter("")

    def see(self, stage: str, step: int, figures: Mapping[str, float]) -> list[Alert]:
        """Takes a step's figures, as a row of metrics.jsonl has them; returns the warnings that begin or end there."""
        if stage != self._stage:
            self._enter(stage)
        self._note_work("generator/loss" in figures)
        compiled = figures.get(COMPILING, 0) > 0
        for watchdog, rules in self._rules.items():
            for figure, window in {(rule.figure, rule.window) for rule in rules}:
                value = figures.get(figure, math.nan)
                skip = math.isnan(value) or (compiled and figure.startswith(SPEED))
                if not skip and (series := self._series.get((figure, window))):
                    series.add(step, value, usual=watchdog not in self._standing)
        return [alert for watchdog in RULES if (alert := self._look(watchdog, step))]

    def replay(self, records: list[dict[str, Any]]) -> None:
        """Takes the rows of a run that continues (`gadjax.metrics.read_metrics`); their warnings were said before."""
        for record in records:
            if record["kind"] == "train":
                self.see(record["stage"], record["step"], record)

    def standing(self, stage: str) -> dict[str, Alert]:
        """The warnings of a stage that have begun and not ended, by watchdog."""
        return {name: alert for name, (_, alert) in self._standing.items()} if stage == self._stage else {}

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self._trains: bool | None = None
        self._standing: dict[str, tuple[Rule, Alert]] = {}
        watched = [rule for rules in self._rules.values() for rule in rules if stage in rule.advice]
        self._series = {(rule.figure, rule.window): Series(rule.window) for rule in watched}

    def _note_work(self, trains: bool) -> None:
        """Restarts the figures of speed where a stage begins or ends to train the generator: they do not compare."""
        if trains != self._trains:
            self._trains = trains
            self._standing.pop("throughput", None)
            self._series |= {key: Series(key[1]) for key in self._series if key[0].startswith(SPEED)}

    def _look(self, watchdog: str, step: int) -> Alert | None:
        if watchdog in self._standing:
            return self._ended(watchdog, step)
        for rule in self._rules[watchdog]:
            if self._stage in rule.advice and (begun := self._begun(watchdog, rule, step)):
                self._standing[watchdog] = rule, begun
                return begun
        return None

    def _begun(self, watchdog: str, rule: Rule, step: int) -> Alert | None:
        series = self._series[rule.figure, rule.window]
        limit, why = rule.limit(series, self._teacher)
        value = series.median()
        if value is None or math.isnan(limit) or not rule.past(value, limit):
            return None
        since = next(at for at, found in series.window if rule.past(found, limit))
        side = "above" if rule.above else "below"
        seen = f"{rule.what} is {value:.3g} (median of {rule.window} steps), {side} {limit:.3g}{why} since step {since}"
        advice = rule.advice[self._stage].format(stage=self._stage)
        return Alert(watchdog, BEGINS, self._stage, step, since, rule.figure, value, limit, seen, advice)

    def _ended(self, watchdog: str, step: int) -> Alert | None:
        rule, begun = self._standing[watchdog]
        value = self._series[rule.figure, rule.window].median()
        if value is None or rule.past(value, begun.limit * rule.relief):
            return None
        del self._standing[watchdog]
        side = "below" if rule.above else "above"
        seen = f"{rule.what} is {value:.3g} again, {side} {begun.limit:.3g}; it had not been since step {begun.since}"
        return dataclasses.replace(begun, state=ENDS, step=step, value=value, seen=seen, advice="")
