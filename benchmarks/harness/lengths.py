"""Responses of skewed lengths that no scheduler can foresee, equal on every side.

A sampled token ends a response if it is one of a set of ids. The set is chosen on responses that nothing ended: there,
a response ends at its first token of the set, so the lengths under any set are known without sampling again. gadjax
then samples with that set as its EOS ids. The other side has other random numbers: it is told the length of each row,
and learns it when the row ends.
"""

from __future__ import annotations

import numpy as np


def lengths_under(ends: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[R] the length of each response, its last token included.

    Args:
      ends: [V] bool, the set of tokens that end a response.
      tokens: [R, T] unended responses; a response without a token of the set has T.
    """
    hits = ends[tokens]
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, tokens.shape[1])


def choose_ends(tokens: np.ndarray, vocabulary: int, median: float, seed: int = 0) -> np.ndarray:
    """Chooses ids that end responses, so that the median length is near `median`.

    Ids are added in a random order; the set with the nearest median is taken.

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
