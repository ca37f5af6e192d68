"""Sets of ids that end responses early."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness.lengths import choose_ends, lengths_under


def test_lengths_against_a_plain_loop():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (40, 12))
    ends = rng.random(20) < 0.1
    expected = [next((t + 1 for t, token in enumerate(row) if ends[token]), 12) for row in tokens]
    assert lengths_under(ends, tokens).tolist() == expected
    assert set(lengths_under(np.zeros(20, bool), tokens)) == {12}


@pytest.mark.parametrize("skew", [0.0, 1.2])
def test_median_is_where_it_should_be(skew):
    """The tokens are equally likely, as from random weights, or a few make up most of the text."""
    vocabulary, limit = 2000, 128
    weights = np.arange(1, vocabulary + 1) ** -skew
    tokens = np.random.default_rng(1).choice(vocabulary, (128, limit), p=weights / weights.sum())
    chosen = choose_ends(tokens, vocabulary, limit / 6)
    ends = np.zeros(vocabulary, bool)
    ends[chosen] = True
    lengths = lengths_under(ends, tokens)
    assert np.median(lengths) == pytest.approx(limit / 6, rel=0.15)
    assert lengths.max() > 3 * np.median(lengths)  # skewed, not all alike
    assert chosen.tolist() == sorted(set(chosen.tolist()))
