"""Key-value caches in blocks of positions, and the attention of one token a row that reads no more than is stored.

Everything here is about the rows and heads that one device holds.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gadjax.models.loops import repeat

BLOCK = 128  # positions that are read at once
_SMALLEST = 16  # that a block has
LOWEST = jnp.finfo(jnp.float32).min


class Cache(NamedTuple):
    """Keys and values of R rows; position t is in block t // size at t % size.

    Keys lie with their channels before their positions, so that both products of an attention read rows of memory.
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


class Partial(NamedTuple):
    """Attention over a part of what a query sees, before it is divided by the sum of the weights; float32."""

    mixed: jax.Array  # [..., D] values, weighted by exp(logit - top)
    top: jax.Array  # [...] the largest logit
    total: jax.Array  # [...] the sum of the weights


def blocks_of(limit: int, block: int = BLOCK) -> tuple[int, int]:
    """Number and size of the blocks that hold `limit` positions.

    A size is `block`, or the smallest power of two, at least 16, that holds fewer positions: a kernel's tiles are such,
    and vector units pad to 128 whatever is asked for. The last block is not read before it is reached.
    """
    size = min(block, max(_SMALLEST, 1 << (limit - 1).bit_length()))
    return -(-limit // size), size


def empty(rows: int, limit: int, num_kv_heads: int, head_dim: int, dtype: str, block: int = BLOCK) -> Cache:
    """A cache of zeros for `rows` rows of up to `limit` positions."""
    count, size = blocks_of(limit, block)
    shape = count, rows, num_kv_heads
    return Cache(jnp.zeros((*shape, head_dim, size), dtype), jnp.zeros((*shape, size, head_dim), dtype))


def widen(x: jax.Array, heads: int) -> jax.Array:
    """[..., Nkv, D] keys or values with each head repeated, [..., heads, D], so that devices share none."""
    return jnp.repeat(x, heads // x.shape[-2], axis=-2)


def put_token(cache: Cache, key: jax.Array, value: jax.Array, position: jax.Array) -> Cache:
    """The cache with one more token a row.

    Args:
      key, value: [R, Nkv, D].
      position: [R], where it goes; one that the cache does not have is dropped.
    """
    rows = jnp.arange(key.shape[0])
    block, place = position // cache.size, position % cache.size
    unique = {"unique_indices": True, "mode": "drop"}
    return Cache(
        cache.key.at[block, rows, :, :, place].set(key, **unique),
        cache.value.at[block, rows, :, place].set(value, **unique),
    )


def put_rows(cache: Cache, key: jax.Array, value: jax.Array, rows: jax.Array) -> Cache:
    """The cache with whole rows replaced.

    Args:
      key, value: [C, P, Nkv, D], P at most the cache's positions.
      rows: [C], where they go; those outside of the cache are dropped.
    """
    count, size = cache.key.shape[0], cache.size

    def in_blocks(x):  # [blocks, C, Nkv, size, D]
        x = jnp.pad(x, ((0, 0), (0, count * size - x.shape[1]), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], count, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)

    return Cache(
        cache.key.at[:, rows].set(in_blocks(key).swapaxes(3, 4), mode="drop"),
        cache.value.at[:, rows].set(in_blocks(value), mode="drop"),
    )


def attend(query: jax.Array, cache: Cache, length: jax.Array) -> Partial:
    """Attention of some queries a row over the row's first positions, up to the block of the longest row.

    Args:
      query: [R, Nkv, Q, D], scaled.
      cache: of R rows.
      length: [R] positions that a row's queries see; a row of 0 weighs nothing in `merge`.

    Returns:
      A `Partial` of [R, Nkv, Q].
    """
    if cache.key.shape[0] == 1:
        return _over_block(query, cache, 0, length)
    needed = (jnp.max(length, initial=0) + cache.size - 1) // cache.size
    shape = query.shape[:-1]
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    nothing = Partial(zeros(query.shape), jnp.full(shape, LOWEST, jnp.float32), zeros(shape))

    def step(block, so_far):
        return add(so_far, _over_block(query, cache, block, length))

    return repeat(needed, cache.key.shape[0], step, nothing)


def fold(parts: Partial) -> Partial:
    """One part from those along the leading axis."""
    top = jnp.max(parts.top, axis=0)
    share = jnp.exp(parts.top - top)
    return Partial(jnp.sum(parts.mixed * share[..., None], axis=0), top, jnp.sum(parts.total * share, axis=0))


def merge(*parts: Partial) -> jax.Array:
    """The attention [..., D] over all that the parts saw, float32."""
    whole = functools.reduce(add, parts)
    return whole.mixed / whole.total[..., None]


def _over_block(query: jax.Array, cache: Cache, block: jax.Array | int, length: jax.Array) -> Partial:
    key, value = (jax.lax.dynamic_index_in_dim(x, block, keepdims=False) for x in cache)
    logits = jnp.einsum("rkqd,rkdt->rkqt", query, key, preferred_element_type=jnp.float32)
    seen = block * cache.size + jnp.arange(cache.size) < length[:, None]
    logits = jnp.where(seen[:, None, None], logits, LOWEST)
    top = jnp.max(logits, axis=-1)
    weights = jnp.exp(logits - top[..., None])
    mixed = jnp.einsum("rkqt,rktd->rkqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return Partial(mixed, top, jnp.sum(weights, axis=-1))


def add(one: Partial, other: Partial) -> Partial:
    """Attention over what both parts saw."""
    top = jnp.maximum(one.top, other.top)
    left, right = jnp.exp(one.top - top), jnp.exp(other.top - top)
    mixed = one.mixed * left[..., None] + other.mixed * right[..., None]
    return Partial(mixed, top, one.total * left + other.total * right)
