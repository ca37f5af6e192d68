"""Responses of skewed lengths that no scheduler can foresee, the same on every side.

A sampled token ends a response if it is one of a set of ids. The set is chosen on responses that nothing ended: in
those, a response ends where the first token of the set stands, so the lengths under any set are known without sampling
again. gadjax then samples with that set as its EOS ids and finds the ends as it goes. The other side, whose random
numbers are others, is told how long each row is, and learns it no sooner than the row ends.
"""

from __future__ import annotations

import numpy as np


def lengths_under(ends: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Length of each response, its last token included.

    Args:
      ends: [V] bool, the set.
      tokens: [R, T] unended responses; a response without a token of the set has T.

    Returns:
      [R].
    """
    hits = ends[tokens]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, tokens.shape[1])


def choose_ends(tokens: np.ndarray, vocabulary: int, median: float, seed: int = 0) -> np.ndarray:
    """The set whose median length is nearest to `median`, of the growing sets along one random order of the ids.

    Args:
      tokens: [R, T] unended responses.
      vocabulary: V.

    Returns:
      Ids, ascending.
    """
    order = np.random.default_rng(seed).permutation(vocabulary)
    rank = np.empty(vocabulary, int)
    rank[order] = np.arange(vocabulary)
    low, high = 0, vocabulary  # the median falls from T to 1 as the set grows

    def median_of(size: int) -> float:
        return float(np.median(lengths_under(rank < size, tokens)))

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if median_of(middle) > median else (low, middle)
    size = min((low, high), key=lambda s: abs(median_of(s) - median))
    return np.sort(order[:size])
