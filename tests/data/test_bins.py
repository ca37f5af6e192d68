"""Sizes on a grid. How sequences fit into bins is tested through `gadjax.data.packing`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadjax.data.bins import BinSizes, full_rows, round_up, slots_for

pytestmark = pytest.mark.quick


def test_full_rows():
    """Groups stay whole, and rows are a multiple: the larger of two micro-batches holds three of five pairs."""
    assert full_rows(10, 2) == 5
    assert full_rows(10, 2, group=2) == 6
    assert full_rows(10, 2, row_multiple=4, group=2) == 8


@given(st.integers(1, 4096), st.sampled_from([128, 100_000]))
def test_slots(held, tokens):
    """Slots hold all tokens, with bounded padding, and are no more than a row; a small update has four sizes."""
    runs = [BinSizes(np.zeros(1, int), np.array([[tokens]]))]
    slots = slots_for(held, 4096, runs)
    assert held <= slots <= 4096
    if tokens == 128:
        assert slots % 1024 == 0 and slots - held < 1024
    else:
        assert slots % 16 == 0 and slots <= held + held // 8 + 15
    assert slots_for(slots, 4096, runs) == slots


@given(st.integers(0, 100_000), st.integers(1, 64))
def test_round_up(value, multiple):
    """Padding is bounded by a share, or by the multiple."""
    for steps in (8, 16):
        rounded = round_up(value, multiple, steps)
        assert rounded >= max(value, 1)
        assert rounded % multiple == 0
        assert rounded - value <= max(value / steps, 1) + multiple - 1


@given(st.integers(0, 100_000), st.sampled_from([1, 2, 8, 64]))
def test_round_up_twice(value, multiple):
    rounded = round_up(value, multiple)
    assert round_up(rounded, multiple) == rounded
    assert rounded <= round_up(value + 1, multiple)


def test_round_up_of_a_multiple():
    """Nine rows for nine shards need no padding."""
    assert [round_up(9, 9), round_up(24, 24), round_up(10, 9)] == [9, 24, 18]


def test_round_up_has_few_values():
    assert len({round_up(value) for value in range(1, 4097)}) <= 8 * 12
