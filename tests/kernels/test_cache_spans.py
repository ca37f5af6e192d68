"""Spans of caches equal one cache, and only the spans that rows reach are read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.kernels import cache_spans, choose, kv_cache
from gadjax.kernels.online_softmax import merge

RNG = np.random.default_rng(0)
ROWS, HEADS, DIM, LIMIT = 3, 2, 8, 150


@pytest.fixture(autouse=True)
def small_spans(monkeypatch):
    """Makes the first span short, so that few positions have several spans."""
    monkeypatch.setattr(cache_spans, "FIRST", 32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [1]), (32, [32]), (40, [32, 8]), (128, [32, 32, 64]), (150, [32, 32, 64, 22]), (512, [32, 32, 64, 128, 256])],
)
def test_sizes_double_up_to_the_limit(limit, expected):
    assert cache_spans.doubling(limit) == expected and sum(expected) == limit


def test_a_block_is_not_divided(monkeypatch):
    monkeypatch.undo()
    assert cache_spans.doubling(128) == [128] and cache_spans.doubling(700) == [128, 128, 256, 188]
    sizes = [cache.value.shape[::3] for cache in choose.empty_cache(None, ROWS, 700, HEADS, DIM, "float32")]
    assert sizes == [(1, 128), (1, 128), (1, 256), (1, 188)]


def filled():
    """The same rows and tokens, in spans and in one cache."""
    shape = ROWS, LIMIT, HEADS, DIM, "float32"
    stored = choose.empty_cache(None, *shape), (kv_cache.empty(*shape),)
    assert len(stored[0]) == 4
    key, value, rows = normal(2, 100, HEADS, DIM), normal(2, 100, HEADS, DIM), np.array([2, ROWS])
    stored = [cache_spans.put_rows(one, key, value, rows) for one in stored]  # row number ROWS does not exist
    for position in ([0, 31, 149], [31, 32, 128], [LIMIT - 1, 63, 64], [32, 0, 0]):
        key, value = normal(ROWS, HEADS, DIM), normal(ROWS, HEADS, DIM)
        stored = [cache_spans.put_token(one, key, value, np.array(position)) for one in stored]
    return stored


def flat(stored):
    """Keys and values [ROWS, LIMIT, HEADS, DIM]."""
    of = lambda x: np.asarray(x).transpose(1, 0, 3, 2, 4).reshape(ROWS, -1, HEADS, DIM)  # noqa: E731
    parts = [(of(jnp.swapaxes(cache.key, 3, 4)), of(cache.value)) for cache in stored]
    return [np.concatenate(x, axis=1)[:, :LIMIT] for x in zip(*parts, strict=True)]


def test_tokens_and_rows_go_where_one_cache_has_them():
    several, one = map(flat, filled())
    np.testing.assert_array_equal(several, one)
    assert np.any(one[0][:, 128:])


@pytest.mark.parametrize("length", [[150, 1, 0], [33, 32, 31], [64, 65, 129], [0, 0, 0]])
def test_attends_as_over_one_cache(length):
    several, one = filled()
    query, length, other = (
        normal(ROWS, HEADS, 2, DIM),
        np.array(length),
        kv_cache.empty(ROWS, 16, HEADS, DIM, "float32"),
    )
    rest = kv_cache.attend(query, other, np.ones(ROWS, int))  # what is merged with a row of 0
    found, wanted = (
        jax.jit(cache_spans.attend, static_argnums=3)(query, x, length, kv_cache.attend) for x in (several, one)
    )
    np.testing.assert_allclose(merge(found, rest), merge(wanted, rest), rtol=1e-5, atol=1e-6)


def test_attends_from_a_first_position_as_over_one_cache():
    """Each query has its own; a query that sees nothing weighs nothing."""
    several, one = filled()
    query, length = normal(ROWS, HEADS, 2, DIM), np.array([150, 100, 33])
    first = np.array([[149, 20], [-5, 64], [40, 32]])
    rest = kv_cache.attend(query, kv_cache.empty(ROWS, 16, HEADS, DIM, "float32"), np.ones(ROWS, int))
    attend = jax.jit(cache_spans.attend, static_argnums=3)
    found, wanted = (merge(attend(query, x, length, kv_cache.attend, first), rest) for x in (several, one))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    key, value = flat(several)
    for row, head, lane in np.ndindex(ROWS, HEADS, 2):
        seen = slice(max(first[row, lane], 0), length[row])
        weights = np.exp(np.append(key[row, seen, head] @ query[row, head, lane], 0.0))  # the last one is `rest`
        expected = weights[:-1] @ value[row, seen, head] / weights.sum()
        np.testing.assert_allclose(found[row, head, lane], expected, rtol=1e-4, atol=1e-5)


def test_spans_beyond_the_longest_row_are_not_read():
    """NaN in spans that no row reaches does not reach the result."""
    stored, query = filled()[0], normal(ROWS, HEADS, 2, DIM)
    attend = jax.jit(cache_spans.attend, static_argnums=3)
    poisoned = (*stored[:2], *(jax.tree.map(lambda x: x * jnp.nan, cache) for cache in stored[2:]))
    short, longer = np.array([64, 0, 4]), np.array([64, 0, 65])
    found = attend(query, poisoned, short, kv_cache.attend)
    jax.tree.map(np.testing.assert_array_equal, found, attend(query, stored, short, kv_cache.attend))
    assert np.isfinite(found.mixed).all() and np.isnan(attend(query, poisoned, longer, kv_cache.attend).mixed).any()
