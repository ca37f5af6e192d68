"""Rounds, and the statistics of their figures."""

from __future__ import annotations

import pytest

from benchmarks.harness.measure import Spread, exponent, interleave, pairwise


def test_spread():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert Spread.of([4.0, 1.0]).median == 2.5
    assert Spread(2.0, 1.0, 3.5).text() == "2.00 (1.00–3.50)"
    assert Spread(0.5, 0.25, 1.0).text(".0%") == "50% (25%–100%)"


def test_every_side_has_its_turn_in_every_round_forwards_and_backwards():
    order = []

    def side(name):
        def turn():
            order.append(name)
            return {"seconds": len(order)}

        return turn

    found = interleave({name: side(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert [turn["seconds"] for turn in found["a"]] == [1, 6, 7]
    assert [turn["seconds"] for turn in found["c"]] == [3, 4, 9]


def test_ratios_are_of_the_same_round():
    """If the machine slows down fourfold, times change and ratios do not."""
    ratios = pairwise([1.0, 4.0, 2.0], [2.0, 8.0, 4.0])
    assert ratios == Spread(0.5, 0.5, 0.5)
    assert pairwise([1.0, 1.0, 9.0], [1.0, 2.0, 3.0]) == Spread(1.0, 0.5, 3.0)
    with pytest.raises(ValueError):
        pairwise([1.0], [1.0, 2.0])


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_exponent_of_a_power_law(power):
    sizes = [4, 8, 16, 64]
    assert exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


def test_exponent_is_the_best_fit_in_logarithms():
    """Errors of equal factors above and below cancel."""
    assert exponent([1, 2, 4, 8], [1.1, 2 / 1.1, 4 / 1.1, 8 * 1.1]) == pytest.approx(1.0)
