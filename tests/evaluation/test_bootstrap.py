"""Intervals against scipy's bootstrap and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from gadjax.evaluation import bootstrap

stats = pytest.importorskip("scipy.stats")


def test_against_scipy():
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, size=200)
    ours = bootstrap.mean(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=1)
    assert ours.value == pytest.approx(values.mean())
    np.testing.assert_allclose(ours[1:], theirs.confidence_interval, rtol=0.01)


def test_a_ratio_against_scipy():
    """Nats and tokens of a prompt are drawn together."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, size=120).astype(float)
    nats = tokens * rng.gamma(2.0, size=120)

    def ratio(nats, tokens, axis):
        return nats.sum(axis=axis) / tokens.sum(axis=axis)

    ours = bootstrap.ratio_of_means(nats, tokens)
    theirs = stats.bootstrap(
        (nats, tokens), ratio, n_resamples=10_000, method="percentile", paired=True, random_state=1
    )
    assert ours.value == pytest.approx(nats.sum() / tokens.sum())
    np.testing.assert_allclose(ours[1:], theirs.confidence_interval, rtol=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [bootstrap.mean(rng.normal(size=50), seed=i) for i in range(200)]
    assert 0.88 <= np.mean([estimate.low <= 0 <= estimate.high for estimate in found]) <= 0.99


@pytest.mark.parametrize("pair", [([], []), ([1.0], [1.0, 2.0])])
def test_what_makes_no_pairs(pair):
    with pytest.raises(ValueError, match="expected a pair a prompt"):
        bootstrap.ratio_of_means(*map(np.array, pair))
