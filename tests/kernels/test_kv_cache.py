"""KV caches in blocks of positions, compared with plain arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.kernels import kv_cache
from gadjax.kernels.online_softmax import merge

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
ROWS, HEADS, DIM = 3, 2, 4


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def plain(cache):
    """Keys and values [R, blocks * size, Nkv, D]."""
    key, value = np.asarray(cache.key), np.asarray(cache.value)
    flat = lambda x: x.transpose(1, 0, 3, 2, 4).reshape(ROWS, -1, HEADS, DIM)  # noqa: E731
    return flat(key.swapaxes(3, 4)), flat(value)


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, (1, 16)), (60, (1, 64)), (128, (1, 128)), (129, (2, 128)), (1536, (12, 128))]
)
def test_blocks_hold_the_limit_and_less_than_a_block_more(limit, expected):
    count, size = kv_cache.blocks_of(limit)
    assert (count, size) == expected and limit <= count * size < limit + max(size, 16)


@pytest.mark.parametrize("block", [2, 3, 100])
def test_tokens_and_rows_go_where_they_are_told(block):
    cache = kv_cache.empty(ROWS, 7, HEADS, DIM, "float32", block)
    expected = np.zeros((2, *plain(cache)[0].shape), np.float32)
    keys, values = normal(2, 5, HEADS, DIM), normal(2, 5, HEADS, DIM)
    cache = kv_cache.put_rows(cache, keys, values, np.array([2, ROWS]))  # row number ROWS does not exist
    expected[:, 2, :5] = keys[0], values[0]
    for positions in ([0, 6, 5], [1, 0, 6]):
        key, value = normal(ROWS, HEADS, DIM), normal(ROWS, HEADS, DIM)
        cache = kv_cache.put_token(cache, key, value, np.array(positions))
        expected[:, np.arange(ROWS), positions] = key, value
    np.testing.assert_array_equal(plain(cache), expected)


def test_blocks_beyond_the_longest_row_are_not_read():
    """NaN in blocks that no row reaches does not reach the result."""
    cache = kv_cache.empty(ROWS, 12, HEADS, DIM, "float32", 3)
    keys, values = normal(ROWS, 6, HEADS, DIM), normal(ROWS, 6, HEADS, DIM)
    cache = kv_cache.put_rows(cache, keys, values, np.arange(ROWS))
    query, length = normal(ROWS, HEADS, 2, DIM), np.array([6, 0, 4])
    once = jax.jit(kv_cache.attend)
    out = once(query, cache, length)
    poisoned = kv_cache.Cache(cache.key.at[2:].set(jnp.nan), cache.value.at[2:].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, once(query, poisoned, length), out)
    assert np.isnan(once(query, poisoned, np.array([6, 0, 7])).mixed).any()
    assert np.isfinite(out.mixed).all() and np.isfinite(out.top).all()


def test_a_part_that_nothing_is_seen_of_weighs_nothing():
    cache = kv_cache.empty(ROWS, 4, HEADS, DIM, "float32")
    cache = kv_cache.put_rows(cache, normal(ROWS, 4, HEADS, DIM), normal(ROWS, 4, HEADS, DIM), np.arange(ROWS))
    query = normal(ROWS, HEADS, 2, DIM)
    seen = kv_cache.attend(query, cache, np.array([4, 2, 1]))
    unseen = kv_cache.attend(query, cache, np.zeros(ROWS, int))
    np.testing.assert_array_equal(merge(seen, unseen), merge(seen))
