"""The decoding kernel for GPUs, in Pallas's interpreter, against the loop over blocks that serves everywhere."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models import cache as caches
from gadjax.models import gpu_decode

RNG = np.random.default_rng(0)
HEADS, DIM = 2, 16


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def filled(rows, limit):
    cache = caches.empty(rows, limit, HEADS, DIM, "float32", 16)
    return caches.put_rows(cache, normal(rows, limit, HEADS, DIM), normal(rows, limit, HEADS, DIM), np.arange(rows))


@pytest.mark.parametrize("queries", [1, 5, 24])
@pytest.mark.parametrize("programs", [1, 12, 1000])
def test_it_is_the_loop_over_blocks(queries, programs, monkeypatch):
    """Whatever the number of programs that share a row; rows that see nothing, part of a block, or everything."""
    monkeypatch.setattr(gpu_decode, "_PROGRAMS", programs)
    lengths = np.array([70, 0, 1, 17, 64])
    cache, query = filled(len(lengths), 70), normal(len(lengths), HEADS, queries, DIM)
    found = gpu_decode.attend(query, cache, lengths, interpret=True)
    wanted = caches.attend(query, cache, lengths)
    other = caches.attend(query, filled(len(lengths), 16), np.full(len(lengths), 16))
    np.testing.assert_allclose(caches.merge(found, other), caches.merge(wanted, other), rtol=1e-5, atol=1e-6)
    seen = lengths > 0
    np.testing.assert_allclose(found.top[seen], wanted.top[seen], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.total[~seen], 0)


def test_each_row_is_read_up_to_its_own_length():
    """Not to the longest row's, as the loop does."""
    lengths = np.array([16, 70])
    cache, query = filled(2, 70), normal(2, HEADS, 3, DIM)
    clean = gpu_decode.attend(query, cache, lengths, interpret=True)
    poisoned = caches.Cache(cache.key.at[1:, 0].set(jnp.nan), cache.value.at[1:, 0].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, gpu_decode.attend(query, poisoned, lengths, interpret=True), clean)


@pytest.mark.parametrize(
    ("head_dim", "platform", "expected"),
    [(128, "gpu", True), (64, "gpu", True), (80, "gpu", False), (8, "gpu", False), (128, "tpu", False)],
)
def test_where_it_serves(head_dim, platform, expected):
    assert gpu_decode.serves(head_dim, platform) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_lowers_for_cuda(dtype):
    """In the shape of a 14B model's prompts: 8 key-value heads, 5 queries for each of 8 samples."""
    blocks, rows, heads, size, dim = 16, 33, 8, 128, 128
    array = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    cache = caches.Cache(array((blocks, rows, heads, dim, size)), array((blocks, rows, heads, size, dim)))
    traced = jax.jit(gpu_decode.attend).trace(
        array((rows, heads, 40, dim)), cache, jax.ShapeDtypeStruct((rows,), jnp.int32)
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "decode_attention" in text and "xla.gpu.triton" in text
