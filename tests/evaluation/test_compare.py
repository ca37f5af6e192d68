"""Wins, ties and losses, and the sign test against scipy's binomial test."""

from __future__ import annotations

import pytest

from gadjax.evaluation.compare import compare, sign_test


@pytest.mark.parametrize("wins", range(0, 30, 3))
@pytest.mark.parametrize("losses", [0, 1, 7, 20, 29])
def test_against_scipy(wins, losses):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-12)


def test_thousands():
    stats = pytest.importorskip("scipy.stats")
    assert sign_test(2600, 2400) == pytest.approx(stats.binomtest(2600, 5000).pvalue, rel=1e-9)


def test_by_hand():
    """Of four decided prompts all four for b: 2 / 2^4."""
    found = compare("a", "b", [0.5, 0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.3, 0.4, 0.5])
    assert (found.a, found.b, found.win, found.tie, found.lose, found.p) == ("a", "b", 0, 1, 4, 0.125)
    assert "sign test" in found.test
    back = compare("b", "a", [0.5, 0.2, 0.3, 0.4, 0.5], [0.5, 0.1, 0.2, 0.3, 0.4])
    assert (back.win, back.tie, back.lose, back.p) == (4, 1, 0, 0.125)


def test_other_prompts_are_no_pairs():
    with pytest.raises(ValueError, match="shorter"):
        compare("a", "b", [0.5, 0.4], [0.5])
