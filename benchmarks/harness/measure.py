"""Runs rounds in which every side has one turn, and summarises their figures."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]  # of one turn: "seconds", and what the side counted


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median and range of a figure over rounds."""

    median: float
    low: float  # the least of them
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one figure for each round."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ".2f") -> str:
        """The median and the range, for people."""
        return f"{self.median:{form}} ({self.low:{form}}–{self.high:{form}})"


def interleave(sides: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Runs all sides once in each round, in alternating order, so that drift of the machine favours none.

    Args:
      sides: functions that run a turn and return its figures, by name.
      rounds: at least 1.

    Returns:
      The figures of each round, by name.
    """
    results: dict[str, list[Figures]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            results[name].append(sides[name]())
    return results


def pairwise(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio of two figures in each round. A load that slows both sides of a round does not change it."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of the power law value = c size^p, fitted by least squares in logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
