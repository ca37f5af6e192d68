"""The online softmax: attention over keys that come in parts, without ever holding all logits.

Attention over some keys is kept as a `Partial`: the weighted sum of their values, the largest logit, and the sum of the
weights (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135). Three operations build it:

- `of_block` attends over one block of keys alone, and `add` or `fold` joins such parts. KV caches use these: the
  parts of a prompt and of a response, or of a row that several programs share, are found apart from each other.
- `update` takes one more block of keys into a `Partial`. The loops of `cpu_blocks` and of the Triton kernel use it:
  they rescale one running sum, where `add` would rescale two.

`update` is not `add` of an `of_block`: the results differ in the last bits, and so would a run's figures. JAX's Splash
and cuDNN have an online softmax of their own inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOWEST = jnp.finfo(jnp.float32).min  # the logit of a key that is not seen; finite, so that no row is NaN


class Partial(NamedTuple):
    """Attention over a part of the keys, before the division by the sum of the weights; at least float32."""

    mixed: jax.Array  # [..., D] sum of the values, weighted by exp(logit - top)
    top: jax.Array  # [...] the largest logit
    total: jax.Array  # [...] sum of the weights


def nothing(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Partial:
    """Attention over no keys, for queries of the shape [..., D]."""
    mixed = jnp.zeros(shape, dtype)
    return Partial(mixed, jnp.full(shape[:-1], jnp.finfo(dtype).min, dtype), jnp.zeros(shape[:-1], dtype))


def of_block(logits: jax.Array, times_values: Callable[[jax.Array], jax.Array]) -> Partial:
    """Attention over one block of keys.

    Args:
      logits: [..., T], those of keys that are not seen at the dtype's lowest.
      times_values: maps weights [..., T] to their product with the block's values, [..., D].
    """
    top = jnp.max(logits, axis=-1)
    weights = jnp.exp(logits - top[..., None])
    return Partial(times_values(weights), top, jnp.sum(weights, axis=-1))


def update(so_far: Partial, logits: jax.Array, times_values: Callable[[jax.Array], jax.Array]) -> Partial:
    """`so_far` with one more block of keys; the other arguments are those of `of_block`."""
    top = jnp.maximum(so_far.top, jnp.max(logits, axis=-1))
    weights, kept = jnp.exp(logits - top[..., None]), jnp.exp(so_far.top - top)
    mixed = so_far.mixed * kept[..., None] + times_values(weights)
    return Partial(mixed, top, so_far.total * kept + jnp.sum(weights, axis=-1))


def add(one: Partial, other: Partial) -> Partial:
    """Attention over the keys of both parts."""
    top = jnp.maximum(one.top, other.top)
    left, right = jnp.exp(one.top - top), jnp.exp(other.top - top)
    mixed = one.mixed * left[..., None] + other.mixed * right[..., None]
    return Partial(mixed, top, one.total * left + other.total * right)


def fold(parts: Partial) -> Partial:
    """Attention over the keys of all parts, which lie along the leading axis."""
    top = jnp.max(parts.top, axis=0)
    share = jnp.exp(parts.top - top)
    return Partial(jnp.sum(parts.mixed * share[..., None], axis=0), top, jnp.sum(parts.total * share, axis=0))


def merge(*parts: Partial) -> jax.Array:
    """The finished attention [..., D] over the keys of all parts, float32."""
    whole = functools.reduce(add, parts)
    return whole.mixed / whole.total[..., None]


def repeat(count: jax.Array, most: int, step: Callable[[jax.Array, Any], Any], state: Any) -> Any:
    """The state after `step(number, state)` for the numbers 0 to `count` - 1: a loop over blocks.

    Args:
      count: number of turns, known when the program runs; never more than `most`.
      most: a constant bound. `gadjax.planning` reads it in the compiled program to count the loop's operations.
      step: one turn.
      state: what the loop starts from.
    """
    unfinished = lambda carry: (carry[0] < count) & (carry[0] < most)  # noqa: E731
    body = lambda carry: (carry[0] + 1, step(*carry))  # noqa: E731
    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]
