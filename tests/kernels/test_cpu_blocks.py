"""Attention in blocks equals the plain attention, and leaves out blocks in which nothing is seen."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.kernels.causal_attention import plain_attention
from gadjax.kernels.cpu_blocks import _in_blocks, _pairs, block_attention
from gadjax.segments import BRANCH, Window, visible


def normal(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def runs(*lengths):
    """The ids of a row, from pairs of an id and its number of tokens."""
    return np.concatenate([np.full(tokens, segment, np.int32) for segment, tokens in lengths])


def branch(root, number):
    return root + number * BRANCH


# A prompt with branches and another sequence; sequences with padding in parts of blocks and in whole blocks.
SHARED = runs((1, 21), (branch(1, 1), 30), (branch(1, 2), 9), (branch(1, 3), 17), (2, 23))
PACKED = runs((1, 7), (2, 40), (0, 3), (3, 11), (0, 39))
GAPS = runs((1, 12), (0, 30), (1, 25), (0, 33))


def rows(*ids):
    return jnp.asarray(np.stack(ids))


def value_and_gradients(attend, query, key, value, ids):
    weights = normal(*query.shape, dtype=query.dtype) * (ids > 0)[..., None, None]

    def total(query, key, value):
        out = attend(query, key, value, ids)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return out * (ids > 0)[..., None, None], *gradients


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("ids", [(SHARED,), (PACKED, SHARED), (GAPS, PACKED)])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_it_is_the_plain_attention(block, ids, kv_heads):
    """Results and gradients agree at every token that is not padding."""
    ids = rows(*ids)
    arrays = [normal(*ids.shape, heads, 8) for heads in (4, kv_heads, kv_heads)]
    found = value_and_gradients(functools.partial(block_attention, block=block), *arrays, ids)
    for name, got, wanted in zip("oqkv", found, value_and_gradients(plain_attention, *arrays, ids), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5, err_msg=name)


def exact_attention(query, key, value, ids):
    """The attention in the arrays' own dtype; the plain attention's logits are float32."""
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    logits = jnp.einsum("btnd,bsnd->bnts", query, key) / query.shape[-1] ** 0.5
    seen = visible(ids, ids) & np.tri(ids.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnd->btnd", weights, value)


def test_in_float64():
    with jax.enable_x64(True):
        ids = rows(SHARED, PACKED)
        arrays = [normal(*ids.shape, heads, 8, dtype=np.float64) for heads in (4, 2, 2)]
        found = value_and_gradients(functools.partial(block_attention, block=16), *arrays, ids)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12),
            found,
            value_and_gradients(exact_attention, *arrays, ids),
        )


def test_bfloat16_is_as_near_as_it_can_be():
    ids = rows(SHARED)
    exact = [normal(*ids.shape, heads, 8) for heads in (4, 2, 2)]
    rounded = [x.astype(jnp.bfloat16) for x in exact]
    found = value_and_gradients(functools.partial(block_attention, block=16), *rounded, ids)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    for got, wanted in zip(found, value_and_gradients(plain_attention, *exact, ids), strict=True):
        np.testing.assert_allclose(got.astype(np.float32), wanted, atol=0.1)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((runs((1, 64)),), 10),  # one sequence over four blocks: the lower triangle
        ((runs((1, 16), (2, 16), (3, 16), (4, 16)),), 4),  # one sequence per block: the diagonal
        ((runs((1, 16), (branch(1, 1), 16), (branch(1, 2), 16), (branch(1, 3), 16)),), 7),  # and the prompt
        ((runs((1, 16), (0, 48)),), 1),  # padding is left out
        ((runs((1, 16), (2, 16), (3, 32)), runs((1, 32), (2, 16), (3, 16))), 6),  # what either row needs
    ],
)
def test_pairs_in_which_nothing_is_seen_are_left_out(ids, expected):
    assert int(_pairs(_in_blocks(rows(*ids), 16)).count) == expected


def test_what_is_left_out_is_not_read():
    """NaN in a branch reaches that branch only."""
    ids = rows(runs((1, 16), (branch(1, 1), 16), (branch(1, 2), 16)))
    query, key, value = (normal(*ids.shape, 2, 8) for _ in range(3))
    out = block_attention(query, key.at[:, 16:32].set(jnp.nan), value, ids, block=16)
    assert np.isnan(out[:, 16:32]).all()
    clean = block_attention(query, key, value, ids, block=16)
    np.testing.assert_array_equal(out[:, :16], clean[:, :16])
    np.testing.assert_array_equal(out[:, 32:], clean[:, 32:])


def test_no_square_of_logits_is_held():
    ids = jnp.ones((1, 1024), jnp.int32)
    arrays = [normal(1, 1024, 2, 8) for _ in range(3)]
    loss = lambda attend: lambda *a: jnp.sum(attend(*a, ids))  # noqa: E731
    size = lambda attend: (  # noqa: E731
        jax.jit(jax.grad(loss(attend), argnums=(0, 1, 2))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    )
    assert size(block_attention) < 1024 * 1024 * 4 < size(plain_attention)


def test_blocks_out_of_reach_are_left_out():
    """With a window, a block of queries goes with the blocks that it reaches back to, and with no others."""
    ids = rows(runs((1, 96)))
    blocks = Window(_in_blocks(jnp.arange(96)[None], 16), 17)
    pairs = _pairs(_in_blocks(ids, 16), blocks)
    found = {(int(i), int(j)) for i, j in zip(*(x[: int(pairs.count)] for x in pairs[:2]), strict=True)}
    assert found == {(i, j) for i in range(6) for j in (i - 1, i) if j >= 0}
