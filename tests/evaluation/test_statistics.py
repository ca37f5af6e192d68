"""Bootstrap intervals and the sign test against scipy, and how often an interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # JAX brings it

from gadjax.evaluation import statistics
from gadjax.evaluation.statistics import compare, sign_test

pytestmark = pytest.mark.quick


def test_against_scipy():
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, size=200)
    ours = statistics.mean(values)
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

    ours = statistics.ratio_of_means(nats, tokens)
    theirs = stats.bootstrap(
        (nats, tokens), ratio, n_resamples=10_000, method="percentile", paired=True, random_state=1
    )
    assert ours.value == pytest.approx(nats.sum() / tokens.sum())
    np.testing.assert_allclose(ours[1:], theirs.confidence_interval, rtol=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [statistics.mean(rng.normal(size=50), seed=i) for i in range(200)]
    assert 0.88 <= np.mean([estimate.low <= 0 <= estimate.high for estimate in found]) <= 0.99


@pytest.mark.parametrize("pair", [([], []), ([1.0], [1.0, 2.0])])
def test_what_makes_no_pairs(pair):
    with pytest.raises(ValueError, match="expected a pair a prompt"):
        statistics.ratio_of_means(*map(np.array, pair))


@pytest.mark.parametrize("wins", range(0, 30, 3))
@pytest.mark.parametrize("losses", [0, 1, 7, 20, 29])
def test_the_sign_test_against_scipy(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-12)


def test_the_sign_test_of_thousands():
    assert sign_test(2600, 2400) == pytest.approx(stats.binomtest(2600, 5000).pvalue, rel=1e-9)


def test_a_comparison_by_hand():
    """All four prompts without a tie are for b: p = 2 / 2^4."""
    found = compare("a", "b", [0.5, 0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.3, 0.4, 0.5])
    assert (found.a, found.b, found.win, found.tie, found.lose, found.p) == ("a", "b", 0, 1, 4, 0.125)
    assert "sign test" in found.test
    back = compare("b", "a", [0.5, 0.2, 0.3, 0.4, 0.5], [0.5, 0.1, 0.2, 0.3, 0.4])
    assert (back.win, back.tie, back.lose, back.p) == (4, 1, 0, 0.125)


def test_other_prompts_are_no_pairs():
    with pytest.raises(ValueError, match="shorter"):
        compare("a", "b", [0.5, 0.4], [0.5])


def test_a_mean_difference_by_hand():
    """In points of 100, with the bootstrap's interval of the differences."""
    found = compare("a", "b", [0.5, 0.1, 0.4], [0.25, 0.2, 0.1], seed=3)
    expected = statistics.mean(np.array([25.0, -10.0, 30.0]), seed=3)
    assert (found.difference, found.low, found.high) == pytest.approx(tuple(expected))
    assert compare("a", "b", [], []).difference is None


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
PUBLISHED = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def units(*observers: str) -> list[list[str]]:
    """The values of each unit; "." is missing."""
    return [[value for value in column if value != "."] for column in zip(*observers, strict=True)]


def test_krippendorffs_alpha_as_published():
    assert statistics.krippendorff_alpha(units(*PUBLISHED)) == pytest.approx(0.743, abs=5e-4)
    # Sections A and B: two observers, two values and five.
    assert statistics.krippendorff_alpha(units("0100000010", "1110010000")) == pytest.approx(0.095, abs=5e-4)
    assert statistics.krippendorff_alpha(units("aabbdcccedda", "babbbccceddd")) == pytest.approx(0.692, abs=5e-4)


@pytest.mark.parametrize(
    ("given", "alpha"),
    [
        ([], None),
        (["a", "b"], None),  # one voter
        (["aa", "aa"], None),  # one value
        (["aa", "bb"], 1.0),
        (["ab", "ab"], -0.5),  # D_o = 1, D_e = 2 · 2 · 2 / (4 · 3)
        (["aa", "bb", "c"], 1.0),  # a single value does not count
    ],
)
def test_krippendorffs_alpha_at_the_ends(given, alpha):
    assert statistics.krippendorff_alpha(given) == (alpha if alpha is None else pytest.approx(alpha))
