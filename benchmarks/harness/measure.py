"""Rounds in which every side has its turn, and what their figures say together."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]  # of one turn: "seconds", and what the side counted


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure of several rounds."""

    median: float
    low: float  # the least of them
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one figure a round."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ".2f") -> str:
        """For people: the median and the range."""
        return f"{self.median:{form}} ({self.low:{form}}–{self.high:{form}})"


def interleave(sides: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Runs all sides once in each round, in turn forwards and backwards, so that no drift of the machine favours one.

    Args:
      sides: by name, what a turn does; it gives that turn's figures.
      rounds: at least 1.

    Returns:
      By name, the figures of each round.
    """
    results: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            results[name].append(sides[name]())
    return results


def pairwise(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio of two figures, round by round: what slows both sides of a round leaves it as it is."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of the power law value = c size^p that fits best: the slope of least squares in logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
