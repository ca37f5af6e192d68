"""Bootstrap intervals over prompts (Efron's percentile method)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_AT_ONCE = 2**22  # indices that are held at once


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
