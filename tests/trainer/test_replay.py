from __future__ import annotations

import numpy as np
import pytest

from gadjax.trainer.replay import Replay

pytestmark = pytest.mark.quick


def groups(*numbers: int) -> dict[str, np.ndarray]:
    """Groups that can be told apart; their two fields belong together."""
    numbers = np.array(numbers, np.int32)
    return {"tokens": np.stack([numbers, numbers], axis=1), "lengths": numbers * 10}


def held(replay: Replay, draws: int = 400) -> set[int]:
    drawn = replay.draw(draws, (0, 0))
    np.testing.assert_array_equal(drawn["tokens"][:, 0] * 10, drawn["lengths"])
    return set(drawn["tokens"][:, 0].tolist())


def test_nothing_is_drawn_from_an_empty_ring():
    assert Replay(4).draw(2, (0, 0)) is None


def test_a_ring_of_no_groups_keeps_nothing():
    replay = Replay(0)
    replay.add(groups(1, 2, 3))
    assert replay.arrays == {} and replay.added == 0 and replay.draw(2, (0, 0)) is None


def test_only_what_was_added_is_drawn():
    replay = Replay(8)
    replay.add(groups(1, 2, 3))
    assert held(replay) == {1, 2, 3}


def test_the_oldest_make_room():
    replay = Replay(4)
    for start in (1, 4, 7):
        replay.add(groups(start, start + 1, start + 2))
    assert held(replay) == {6, 7, 8, 9}


def test_of_more_groups_than_fit_the_last_ones_stay():
    replay = Replay(3)
    replay.add(groups(1, 2, 3, 4, 5, 6, 7))
    assert held(replay) == {5, 6, 7}


def test_a_draw_depends_on_its_seed_alone():
    replay, other = Replay(16), Replay(16)
    for ring in (replay, other):
        ring.add(groups(*range(16)))
    replay.draw(5, (1, 1))  # an earlier draw does not matter
    first, again = replay.draw(50, (0, 7)), other.draw(50, (0, 7))
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    assert first["tokens"].shape == (50, 2)
    assert not np.array_equal(first["tokens"], replay.draw(50, (0, 8))["tokens"])
    assert not np.array_equal(first["tokens"], replay.draw(50, (1, 7))["tokens"])


def test_a_draw_is_a_copy():
    """What was drawn stays as it is when the ring moves on."""
    replay = Replay(2)
    replay.add(groups(1, 2))
    drawn = replay.draw(10, (0, 0))
    replay.add(groups(3, 4))
    assert set(drawn["tokens"][:, 0].tolist()) == {1, 2}


def test_a_ring_goes_on_from_its_arrays():
    """As a checkpoint restores it: the arrays and the count are all that it is."""
    replay = Replay(4)
    replay.add(groups(1, 2, 3))
    restored = Replay(4)
    restored.arrays, restored.added = {name: value.copy() for name, value in replay.arrays.items()}, replay.added
    for ring in (replay, restored):
        ring.add(groups(4, 5))
    assert held(replay) == held(restored) == {2, 3, 4, 5}
