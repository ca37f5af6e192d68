"""Attention of one token per row over a KV cache, as one Pallas kernel for NVIDIA GPUs.

On a GPU, the plain loop over blocks copies each block out of the cache before its products, and asks the host at every
block of every layer whether there is another.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from gadjax.kernels.kv_cache import Cache
from gadjax.kernels.online_softmax import LOWEST, Partial, fold, nothing, update

DECODE_ATTENTION = "decode_attention"  # the kernel's name in programs
_LEAST_QUERIES = 16  # the smallest tile of tensor cores
_MOST_QUERIES = 64  # of one program: their sums fill its registers
_PROGRAMS = 264  # two per multiprocessor of an H100: one computes while the other waits for memory


def attend(query: jax.Array, cache: Cache, length: jax.Array, *, interpret: bool = False) -> Partial:
    """`kv_cache.attend`, but each row is read up to its own length.

    The blocks of a row and head are shared among as many programs as keep the device busy, and their results are then
    joined (flash decoding).

    `interpret` runs it in Pallas's interpreter, for tests.
    """
    from jax.experimental.pallas import triton  # here, since JAX means to drop it

    # Queries are filled up to whole tiles, and the blocks of a row are divided into shares.
    rows, heads, queries, head_dim = query.shape
    blocks, size = cache.key.shape[0], cache.size
    tile = min(_MOST_QUERIES, max(_LEAST_QUERIES, 1 << (queries - 1).bit_length()))
    tiles = -(-queries // tile)
    padded = tiles * tile
    query = jnp.pad(query, ((0, 0), (0, 0), (0, padded - queries), (0, 0)))
    shares = min(blocks, -(-_PROGRAMS // (rows * heads * tiles)))
    each = -(-blocks // shares)
    shares = -(-blocks // each)

    # A grid may have three axes: rows, heads times tiles of queries, and shares.
    whole = lambda r, t, s: (0, r, t // tiles, 0, 0)  # noqa: E731
    found = lambda *last: jax.ShapeDtypeStruct((shares, rows, heads, padded, *last), jnp.float32)  # noqa: E731
    mixed, top, total = pl.pallas_call(
        functools.partial(_kernel, each=each),
        grid=(rows, heads * tiles, shares),
        in_specs=[
            pl.BlockSpec((None,), lambda r, t, s: (r,)),
            pl.BlockSpec((None, None, tile, head_dim), lambda r, t, s: (r, t // tiles, t % tiles, 0)),
            pl.BlockSpec((blocks, None, None, head_dim, size), whole),
            pl.BlockSpec((blocks, None, None, size, head_dim), whole),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, tile, head_dim), lambda r, t, s: (s, r, t // tiles, t % tiles, 0)),
            *[pl.BlockSpec((None, None, None, tile), lambda r, t, s: (s, r, t // tiles, t % tiles))] * 2,
        ],
        out_shape=[found(head_dim), found(), found()],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name=DECODE_ATTENTION,
    )(length.astype(jnp.int32), query, *cache)
    return fold(Partial(mixed[..., :queries, :], top[..., :queries], total[..., :queries]))


def _kernel(length_ref, query_ref, key_ref, value_ref, mixed_ref, top_ref, total_ref, *, each: int):
    """One share, of `each` blocks, of one row and head."""
    length, query = length_ref[...], query_ref[...]
    size = value_ref.shape[1]
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

    def over_block(block, so_far):
        logits = dot(query, key_ref[block])
        position = block * size + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(position < length, logits, LOWEST)
        return update(so_far, logits, lambda weights: dot(weights.astype(value_ref.dtype), value_ref[block]))

    first = each * pl.program_id(2)
    last = jnp.minimum(first + each, (length + size - 1) // size)
    mixed_ref[...], top_ref[...], total_ref[...] = jax.lax.fori_loop(first, last, over_block, nothing(query.shape))
