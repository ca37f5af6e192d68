"""Bootstrap intervals over prompts, the sign test between two models, and agreement between voters."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from gadjax.evaluation.results import Comparison

RESAMPLES = 10_000
SIGN_TEST = "exact two-sided sign test, without ties"
_AT_ONCE = 2**22  # indices that the bootstrap holds in memory at once


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of_means(
    numerators: np.ndarray, denominators: np.ndarray, *, seed: int | np.random.Generator = 0
) -> Estimate:
    """sum(numerators) / sum(denominators) with its bootstrap interval (Efron's percentile method).

    `scipy.stats.bootstrap` draws the same resamples, but refuses a single prompt and takes a second to import.

    Args:
      numerators, denominators: [prompts]; a resampled prompt brings both of its numbers.
      seed: of the resampling, or the generator that it draws from.

    Raises:
      ValueError: no prompts, or arrays of different lengths.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    count = len(numerators)
    if not count or denominators.shape != numerators.shape:
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators: expected a pair a prompt")
    rng, size = np.random.default_rng(seed), max(1, _AT_ONCE // count)
    found = []
    for start in range(0, RESAMPLES, size):
        chosen = rng.integers(count, size=(min(size, RESAMPLES - start), count))
        found.append(numerators[chosen].sum(axis=1) / denominators[chosen].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high))


def mean(values: np.ndarray, *, seed: int | np.random.Generator = 0) -> Estimate:
    """The mean of values [prompts] with its interval, as `ratio_of_means`."""
    return ratio_of_means(values, np.ones(len(values)), seed=seed)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of the sign test; ties are left out.

    min(1, 2 P[X <= min(wins, losses)]), where X is binomial with wins + losses trials of probability 1/2. In whole
    numbers: scipy's `binomtest` rounds, and refuses a test without trials, whose p-value is 1.
    """
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def compare(a: str, b: str, scores_a: Sequence[float], scores_b: Sequence[float], *, seed: int = 0) -> Comparison:
    """Compares models `a` and `b` by their scores, from 0 to 1, on the same prompts, in the same order.

    Args:
      a, b: names of the models.
      scores_a, scores_b: one for each prompt.
      seed: of the bootstrap of the mean difference.

    Raises:
      ValueError: the numbers of scores differ.
    """
    pairs = list(zip(scores_a, scores_b, strict=True))
    win, lose = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    found = Comparison(a, b, win, len(pairs) - win - lose, lose, sign_test(win, lose), SIGN_TEST)
    if not pairs:
        return found
    difference = mean(np.array([100 * (x - y) for x, y in pairs]), seed=seed)
    return dataclasses.replace(found, difference=difference.value, low=difference.low, high=difference.high)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is agreement in all, 0 is what chance gives.

    alpha = 1 - D_o / D_e. D_o is the observed share of pairs of values of a unit that differ, each unit weighted by its
    number of values. D_e is the share of differing pairs among all values of units that have two or more.
    (K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.)

    Args:
      units: the values that voters gave to each thing that was voted on; one with a single value does not count.

    Returns:
      None if no unit has two values, or if all values are equal: there is then nothing that chance could get wrong.
    """
    compared = [Counter(values) for values in units if len(values) > 1]
    totals = sum(compared, Counter())
    count = totals.total()
    pairs = count * (count - 1)  # ordered pairs of all values
    expected = pairs - sum(n * (n - 1) for n in totals.values())
    if not expected:
        return None
    observed = 0.0
    for unit in compared:
        size = unit.total()
        observed += (size**2 - sum(n * n for n in unit.values())) / (size - 1)
    return float(1 - (observed / count) / (expected / pairs))
