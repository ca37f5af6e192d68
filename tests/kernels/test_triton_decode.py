"""The decoding kernel for GPUs, in Pallas's interpreter, equals the plain loop over blocks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from gadjax.kernels import kv_cache, triton_decode
from gadjax.kernels.online_softmax import merge

RNG = np.random.default_rng(0)
HEADS, DIM = 2, 16


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def filled(rows, limit):
    cache = kv_cache.empty(rows, limit, HEADS, DIM, "float32", 16)
    return kv_cache.put_rows(cache, normal(rows, limit, HEADS, DIM), normal(rows, limit, HEADS, DIM), np.arange(rows))


@pytest.mark.parametrize("queries", [1, 24, 70])  # parts of a small and of a large tile, and more than one tile
@pytest.mark.parametrize("programs", [1, 12, 1000])
def test_it_is_the_loop_over_blocks(queries, programs, monkeypatch):
    """Any number of programs may share a row, and a row may see nothing, a part of a block, or everything."""
    monkeypatch.setattr(triton_decode, "_PROGRAMS", programs)
    lengths = np.array([70, 0, 1, 17, 64])
    cache, query = filled(len(lengths), 70), normal(len(lengths), HEADS, queries, DIM)
    found = triton_decode.attend(query, cache, lengths, interpret=True)
    wanted = kv_cache.attend(query, cache, lengths)
    other = kv_cache.attend(query, filled(len(lengths), 16), np.full(len(lengths), 16))
    np.testing.assert_allclose(merge(found, other), merge(wanted, other), rtol=1e-5, atol=1e-6)
    seen = lengths > 0
    np.testing.assert_allclose(found.top[seen], wanted.top[seen], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.total[~seen], 0)


def test_each_row_is_read_up_to_its_own_length():
    """The plain loop reads every row up to the longest row's length."""
    lengths = np.array([16, 70])
    cache, query = filled(2, 70), normal(2, HEADS, 3, DIM)
    clean = triton_decode.attend(query, cache, lengths, interpret=True)
    poisoned = kv_cache.Cache(cache.key.at[1:, 0].set(jnp.nan), cache.value.at[1:, 0].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, triton_decode.attend(query, poisoned, lengths, interpret=True), clean)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_lowers_for_cuda(dtype):
    """It lowers with the shapes of a 14B model's prompts: 8 key-value heads, 5 queries for each of 8 samples."""
    blocks, rows, heads, size, dim = 16, 33, 8, 128, 128
    array = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    cache = kv_cache.Cache(array((blocks, rows, heads, dim, size)), array((blocks, rows, heads, size, dim)))
    query, lengths = array((rows, heads, 40, dim)), jax.ShapeDtypeStruct((rows,), jnp.int32)
    device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)):
        text = jax.jit(triton_decode.attend).trace(query, cache, lengths).lower(lowering_platforms=("cuda",)).as_text()
    assert "decode_attention" in text and "xla.gpu.triton" in text
