"""Bootstrap intervals over prompts, and the sign test between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from gadjax.evaluation.results import Comparison

RESAMPLES = 10_000
_AT_ONCE = 2**22  # indices that are held at once
SIGN_TEST = "exact two-sided sign test, without ties"


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of_means(
    numerators: np.ndarray, denominators: np.ndarray, *, seed: int | np.random.Generator = 0
) -> Estimate:
    """sum(numerators) / sum(denominators), both [prompts]; a prompt is drawn with both of its numbers.

    `seed`: of the draws, or what draws.

    Raises:
      ValueError: no prompts, or arrays of different lengths.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    count = len(numerators)
    if not count or denominators.shape != numerators.shape:
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators: expected a pair a prompt")
    rng = np.random.default_rng(seed)
    size = max(1, _AT_ONCE // count)
    found = []
    for start in range(0, RESAMPLES, size):
        chosen = rng.integers(count, size=(min(size, RESAMPLES - start), count))
        found.append(numerators[chosen].sum(axis=1) / denominators[chosen].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high))


def mean(values: np.ndarray, *, seed: int | np.random.Generator = 0) -> Estimate:
    """The mean of values [prompts].

    `seed`: of the draws, or what draws.

    Raises:
      ValueError: no values.
    """
    return ratio_of_means(values, np.ones(len(values)), seed=seed)


def sign_test(wins: int, losses: int) -> float:
    """The probability, were a win as likely as a loss, of a split at least as uneven: exact, two-sided, ties left out.

    Min(1, 2 P[X <= min(wins, losses)]) with X binomial of wins + losses and 1/2; 1 where there is neither.
    """
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))


def compare(a: str, b: str, scores_a: Sequence[float], scores_b: Sequence[float]) -> Comparison:
    """Model `a` against `b` by their scores on the same prompts, in the same order.

    Raises:
      ValueError: they are not of the same number of prompts.
    """
    pairs = list(zip(scores_a, scores_b, strict=True))
    win, lose = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    return Comparison(a, b, win, len(pairs) - win - lose, lose, sign_test(win, lose), SIGN_TEST)
