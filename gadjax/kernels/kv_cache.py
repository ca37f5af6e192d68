"""Key-value caches in blocks of positions, and the plain attention over them, which reads no more than is stored.

All arrays are those of one device: its rows and its heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gadjax.kernels.online_softmax import LOWEST, Partial, add, nothing, of_block, repeat

BLOCK = 128  # positions that are read at once
_SMALLEST_BLOCK = 16


class Cache(NamedTuple):
    """Keys and values of R rows. Position t is in block t // size, at t % size.

    Keys have their channels before their positions, so that both products of an attention read rows of memory.
    """

    key: jax.Array  # [blocks, R, Nkv, D, size]
    value: jax.Array  # [blocks, R, Nkv, size, D]

    @property
    def size(self) -> int:
        """Positions of a block."""
        return self.value.shape[3]

    @property
    def limit(self) -> int:
        """Positions of a row."""
        return self.value.shape[0] * self.size


def blocks_of(limit: int, block: int = BLOCK) -> tuple[int, int]:
    """The number and the size of the blocks that hold `limit` positions.

    The size is `block`, or the smallest power of two, at least 16, that holds `limit` positions: kernels have tiles of
    such sizes, and vector units pad to 128 in any case. A last block that is not reached is not read.
    """
    size = min(block, max(_SMALLEST_BLOCK, 1 << (limit - 1).bit_length()))
    return -(-limit // size), size


def empty(rows: int, limit: int, num_kv_heads: int, head_dim: int, dtype: str, block: int = BLOCK) -> Cache:
    """A cache of zeros for `rows` rows of up to `limit` positions."""
    count, size = blocks_of(limit, block)
    shape = count, rows, num_kv_heads
    return Cache(jnp.zeros((*shape, head_dim, size), dtype), jnp.zeros((*shape, size, head_dim), dtype))


def widen(x: jax.Array, heads: int) -> jax.Array:
    """Keys or values [..., Nkv, D] with each head repeated, [..., heads, D], so that no two devices share a head."""
    return jnp.repeat(x, heads // x.shape[-2], axis=-2)


def put_token(cache: Cache, key: jax.Array, value: jax.Array, position: jax.Array) -> Cache:
    """The cache with one more token per row.

    Args:
      key, value: [R, Nkv, D].
      position: [R], where the token goes; a token whose position the cache does not have is dropped.
    """
    rows = jnp.arange(key.shape[0])
    block, place = position // cache.size, position % cache.size
    unique: Any = {"unique_indices": True, "mode": "drop"}
    return Cache(
        cache.key.at[block, rows, :, :, place].set(key, **unique),
        cache.value.at[block, rows, :, place].set(value, **unique),
    )


def put_rows(cache: Cache, key: jax.Array, value: jax.Array, rows: jax.Array) -> Cache:
    """The cache with whole rows replaced.

    Args:
      key, value: [C, P, Nkv, D], P at most the cache's positions.
      rows: [C], which rows are replaced; row numbers that the cache does not have are dropped.
    """
    count, size = cache.key.shape[0], cache.size

    def in_blocks(x):  # [blocks, C, Nkv, size, D]
        x = jnp.pad(x, ((0, 0), (0, count * size - x.shape[1]), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], count, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)

    return Cache(
        cache.key.at[:, rows].set(in_blocks(key).swapaxes(3, 4), mode="drop"),
        cache.value.at[:, rows].set(in_blocks(value), mode="drop"),
    )


def attend(query: jax.Array, cache: Cache, length: jax.Array, first: jax.Array | None = None) -> Partial:
    """Attention of a few queries per row over the row's first positions: the plain version, a loop over blocks.

    All rows are read up to the block that the longest of them reaches.

    Args:
      query: [R, Nkv, Q, D], scaled.
      cache: holds R rows.
      length: [R] positions that a row's queries see; a row of length 0 weighs nothing in `online_softmax.merge`.
      first: [R, Q] the first position that each query sees, which may be negative; None for 0. Positions before it are
        read, and weigh nothing.

    Returns:
      A `Partial` of the shape [R, Nkv, Q].
    """
    if cache.key.shape[0] == 1:
        return _over_block(query, cache, 0, length, first)
    needed = (jnp.max(length, initial=0) + cache.size - 1) // cache.size

    def step(block, so_far):
        return add(so_far, _over_block(query, cache, block, length, first))

    return repeat(needed, cache.key.shape[0], step, nothing(query.shape))


def _over_block(
    query: jax.Array, cache: Cache, block: jax.Array | int, length: jax.Array, first: jax.Array | None
) -> Partial:
    key, value = (jax.lax.dynamic_index_in_dim(x, block, keepdims=False) for x in cache)
    logits = jnp.einsum("rkqd,rkdt->rkqt", query, key, preferred_element_type=jnp.float32)
    position = block * cache.size + jnp.arange(cache.size)
    seen = (position < length[:, None])[:, None, None]
    if first is not None:
        seen &= (position >= first[..., None])[:, None]
    logits = jnp.where(seen, logits, LOWEST)

    def times_values(weights):
        return jnp.einsum("rkqt,rktd->rkqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)

    return of_block(logits, times_values)
