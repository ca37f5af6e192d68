"""Packed rows: the meaning of every field, which is the same from both builders."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadjax.data.bins import full_rows
from gadjax.data.packing import one_per_row, pack
from gadjax.segments import BRANCH, root

pytestmark = pytest.mark.quick

SHAPE = st.tuples(st.integers(1, 9), st.integers(1, 7))
SHAPES = st.lists(SHAPE, min_size=1, max_size=12)


def sequences(shapes: list[tuple[int, int]], seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts and responses of the given lengths; no id is 0."""
    rng = np.random.default_rng(seed)
    return tuple([rng.integers(1, 1000, shape[i]).astype(np.int32) for shape in shapes] for i in range(2))


def unpack(rows, prompts: list[np.ndarray]) -> dict[int, list[tuple[int, int, int]]]:
    """Each sequence's slots as (step, target, token in the source column)."""
    found: dict[int, list] = {i: [] for i in range(len(prompts))}
    for r, k in zip(*np.nonzero(np.asarray(rows.mask)), strict=True):
        source = int(rows.source[r, k])
        found[int(rows.owner[r, k])].append((int(rows.step[r, k]), int(rows.target[r, k]), int(rows.tokens[r, source])))
    return found


def check(rows, prompts, responses) -> None:
    """The invariants of `Packed`, for one micro-batch."""
    length = rows.tokens.shape[1]
    slots = unpack(rows, prompts)
    for s, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        before = [prompt[-1], *response[:-1]]
        assert sorted(slots[s]) == [(i, response[i], before[i]) for i in range(len(response))]
        row, column = divmod(int(rows.last[s]), length)
        assert rows.tokens[row, column] == response[-1]
        assert rows.positions[row, column] == len(prompt) + len(response) - 1
        assert rows.segments[row, column] > 0
        own = rows.segments[row, column]
        mine = (rows.segments[row] == own) | (rows.segments[row] == root(own))
        assert mine.sum() == len(prompt) + len(response)
        # In the order of their columns, the tokens that it sees are the sequence, at positions from 0.
        assert rows.tokens[row][mine].tolist() == [*prompt, *response]
        assert rows.positions[row][mine].tolist() == list(range(mine.sum()))
    if (rows.segments < BRANCH).all():
        assert (rows.segments > 0).sum() == sum(map(len, prompts)) + sum(map(len, responses))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(16, 40))
def test_pack(shapes, row_length):
    prompts, responses = sequences(shapes)
    rows = pack(prompts, responses, row_length=row_length)
    assert rows.tokens.shape[0] == 1
    rows = jax.tree.map(lambda leaf: leaf[0], rows)
    check(rows, prompts, responses)
    assert rows.source.shape == rows.target.shape == rows.owner.shape == rows.step.shape
    assert rows.source.shape[1] <= row_length
    assert (rows.tokens[rows.segments == 0] == 0).all()
    # Neighbours in a row differ in their segments.
    starts = (rows.positions == 0) & (rows.segments > 0)
    assert starts.sum() == len(prompts)


@settings(max_examples=20, deadline=None)
@given(st.lists(SHAPE, min_size=6, max_size=6))
def test_one_per_row(shapes):
    prompts, responses = sequences(shapes)
    fields = []
    for arrays, width in ((prompts, 10), (responses, 8)):
        padded = np.full((len(arrays), width), 999, np.int32)
        for row, array in zip(padded, arrays, strict=True):
            row[: len(array)] = array
        fields += [padded, np.array([len(array) for array in arrays], np.int32)]
    check(jax.tree.map(np.asarray, jax.jit(one_per_row)(*fields)), prompts, responses)


@settings(max_examples=40, deadline=None)
@given(st.lists(SHAPE, min_size=12, max_size=12), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 3]), st.booleans())
def test_micro_batches_share_the_sequences_out(shapes, micro_batches, group, adaptive):
    """Each sequence is in one micro-batch, with its group, under the caller's number."""
    prompts, responses = sequences(shapes)
    options = dict(micro_batches=micro_batches, row_multiple=2, group=group, together=True, adaptive=adaptive)
    rows = pack(prompts, responses, row_length=16, **options)
    parts, count = rows.last.shape
    assert count == 12 and (parts <= micro_batches if adaptive else parts == micro_batches)
    assert rows.tokens.shape[1] % 2 == 0 and rows.tokens.shape[1] <= full_rows(12, micro_batches, 2, group)
    home = (rows.last >= 0).argmax(axis=0)
    np.testing.assert_array_equal((rows.last >= 0).sum(axis=0), 1)
    assert (home.reshape(-1, group) == home[::group, None]).all(), "a group is in one micro-batch"
    for m in range(parts):
        part = jax.tree.map(lambda leaf, m=m: leaf[m], rows)
        mine = np.flatnonzero(home == m)
        assert set(part.owner[part.mask].tolist()) == set(mine.tolist())
        local = np.full(13, len(mine))
        local[mine] = np.arange(len(mine))
        part = part.replace(owner=local[part.owner], last=part.last[mine])
        check(part, [prompts[i] for i in mine], [responses[i] for i in mine])


def test_minibatches_are_runs_of_sequences_of_one_shape():
    """Sequences are numbered from 0 in each minibatch, and each minibatch is packed alone."""
    prompts, responses = sequences([(i // 4 + 1, 2 * (i // 4) + 1) for i in range(12)])
    rows = pack(prompts, responses, minibatches=3, row_length=16, micro_batches=2)
    assert rows.last.shape == (3, 2, 4)
    for j in range(3):
        run = slice(4 * j, 4 * j + 4)
        alone = pack(prompts[run], responses[run], row_length=16, micro_batches=2)
        part = jax.tree.map(lambda leaf, j=j: leaf[j], rows)
        held = part.tokens[part.segments > 0], alone.tokens[alone.segments > 0]
        assert sorted(held[0].tolist()) == sorted(held[1].tolist())
        assert set(part.owner[part.mask].tolist()) == {0, 1, 2, 3}


def test_short_sequences_have_fewer_micro_batches():
    """Short sequences get fewer micro-batches of no more rows; long sequences fill all of them."""
    prompts, responses = sequences([(4, 4)] * 64)
    fixed, fewer = (
        pack(prompts, responses, row_length=32, micro_batches=16, row_multiple=2, adaptive=adaptive)
        for adaptive in (False, True)
    )
    assert fixed.tokens.shape[:2] == (16, 2)
    assert fewer.tokens.shape[:2] == (4, 4)
    assert (fewer.segments > 0).all()
    prompts, responses = sequences([(16, 16)] * 64)
    assert pack(prompts, responses, row_length=32, micro_batches=16, adaptive=True).tokens.shape[:2] == (16, 4)


def test_a_long_group_does_not_lengthen_the_others_micro_batches():
    """One group fills a micro-batch alone, and many short groups share one."""
    shapes = [(16, 16)] * 9 + [(2, 2)] * 9 * 31
    rows = pack(*sequences(shapes), row_length=32, micro_batches=32, group=9, together=True, adaptive=True)
    assert rows.tokens.shape[1] <= 9
    assert (rows.segments == 0).mean() <= 0.1


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=3, max_size=3)), min_size=1, max_size=9),
    st.booleans(),
    st.integers(1, 4),
)
def test_rows_of_whole_groups_are_no_more_than_groups(groups, together, micro_batches):
    """All lengths fit, since a row holds a prompt of 9 with three responses of 7."""
    prompts = [np.full(prompt, i, np.int32) for i, (prompt, answers) in enumerate(groups) for _ in answers]
    responses = [np.ones(n, np.int32) for _, answers in groups for n in answers]
    options = dict(micro_batches=micro_batches, adaptive=True, group=3, together=together, share=True)
    rows = pack(prompts, responses, row_length=9 + 3 * 7, whole_groups=True, **options)
    assert rows.tokens.shape[0] <= micro_batches
    assert rows.tokens.shape[1] <= -(-len(groups) // micro_batches)
    assert sorted(rows.owner[rows.mask].tolist()) == sorted(i for i, r in enumerate(responses) for _ in r)


GROUPS = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=3, max_size=3)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(GROUPS.filter(bool), st.integers(16, 40), st.booleans(), st.sampled_from([1, 2]))
def test_a_shared_prompt_stands_once_in_a_row(groups, row_length, together, micro_batches):
    """Responses are branches that see their prompt; all other invariants stay."""
    rng = np.random.default_rng(1)
    ids = lambda count: rng.integers(1, 1000, count).astype(np.int32)  # noqa: E731
    prompts = [prompt for length, _ in groups for prompt in [ids(length)] * 3]
    responses = [ids(length) for _, lengths in groups for length in lengths]
    options = dict(row_length=row_length, micro_batches=micro_batches, adaptive=True, group=3, together=together)
    rows = pack(prompts, responses, share=True, **options)
    home = (rows.last >= 0).argmax(axis=0)
    if together:
        assert (home.reshape(-1, 3) == home[::3, None]).all()
    held = 0
    for m in range(len(rows.tokens)):
        part = jax.tree.map(lambda leaf, m=m: leaf[m], rows)
        mine = np.flatnonzero(home == m)
        if not len(mine):
            continue
        local = np.full(len(prompts) + 1, len(mine))
        local[mine] = np.arange(len(mine))
        part = part.replace(owner=local[part.owner], last=part.last[mine])
        check(part, [prompts[i] for i in mine], [responses[i] for i in mine])
        places = {(int(part.last[local[i]]) // row_length, i // 3) for i in mine}
        held += sum(len(prompts[3 * group]) for _, group in places) + sum(len(responses[i]) for i in mine)
    assert (rows.segments > 0).sum() == held
    alone = pack(prompts, responses, **options)
    assert rows.tokens.shape[0] * rows.tokens.shape[1] <= alone.tokens.shape[0] * alone.tokens.shape[1]


def test_rows_are_a_multiple():
    """Rows divide over a mesh."""
    prompts, responses = sequences([(5, 5)] * 5)
    assert pack(prompts, responses, row_length=10, row_multiple=4).tokens.shape[1] == 8
    assert pack(prompts, responses, row_length=50, row_multiple=4).tokens.shape[1] == 4


def test_few_shapes():
    """Rows and slots are on geometric grids, so that batches of one kind of data have few shapes."""
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shapes = [(int(p), int(r)) for p, r in zip(rng.integers(4, 20, 16), rng.integers(1, 17, 16), strict=True)]
        rows = pack(*sequences(shapes), row_length=64)
        seen.add((rows.tokens.shape, rows.source.shape))
    assert len(seen) <= 6


def test_errors():
    prompts, responses = sequences([(5, 5), (9, 2), (3, 3)])
    with pytest.raises(ValueError, match="3 sequences do not divide into 1 minibatches of groups of 2"):
        pack(prompts, responses, row_length=20, group=2)
    with pytest.raises(ValueError, match="3 sequences do not divide into 2 minibatches of groups of 1"):
        pack(prompts, responses, minibatches=2, row_length=20)
    with pytest.raises(ValueError, match="sequence 1 of 11 tokens does not fit a row of 10"):
        pack(prompts, responses, row_length=10)


def test_rows_are_dense():
    """First fit in decreasing order fills two rows; in the order of arrival it would need three."""
    assert pack(*sequences([(2, 1), (2, 1), (6, 1), (6, 1)]), row_length=10).tokens.shape[1] == 2
