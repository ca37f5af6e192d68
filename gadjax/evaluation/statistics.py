"""Bootstrap intervals over prompts, and the sign test between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def compare(a: str, b: str, scores_a: Sequence[float], scores_b: Sequence[float]) -> Comparison:
    """Compares models `a` and `b` by their scores on the same prompts, in the same order.

    Raises:
      ValueError: the numbers of scores differ.
    """
    pairs = list(zip(scores_a, scores_b, strict=True))
    win, lose = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    return Comparison(a, b, win, len(pairs) - win - lose, lose, sign_test(win, lose), SIGN_TEST)
