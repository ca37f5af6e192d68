"""Segment ids: which tokens of a packed row see each other.

A token sees the tokens up to its own position that have its id, or the root of its id. An id below `BRANCH` is its own
root, and the ids `root + k * BRANCH`, k >= 1, are its branches. So the prompt of a group stands in a row once, as a
root; the responses are its branches, which see the prompt and themselves, but not each other. Without branches, each
sequence of a row sees only itself. Id 0 is padding. It sees padding, so that its softmax is finite; nothing reads it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

BRANCH = 1 << 16

Ids = TypeVar("Ids", jax.Array, np.ndarray, int)


class Window(NamedTuple):
    """How far back tokens see, where a layer's attention is limited.

    Attributes:
      positions: [B, T] of each token in its sequence.
      size: tokens that a token sees, itself included; a number, or [] int32.
    """

    positions: jax.Array
    size: Any


def root(segments: Ids) -> Ids:
    """The root of an id: what a branch sees besides itself. An id that is not a branch is its own root."""
    return segments % BRANCH


def visible(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """[B, T, S] bool: whether tokens with ids [B, T] may see tokens with ids [B, S] of their row, in any order."""
    of_query, of_key = queries[:, :, None], keys[:, None, :]
    return (of_key == of_query) | (of_key == root(of_query))


def near(queries: jax.Array, keys: jax.Array, size: Any) -> jax.Array:
    """[B, T, S] bool: whether tokens at positions [B, T] reach back to tokens at positions [B, S] of their sequence."""
    return queries[:, :, None] - keys[:, None, :] < size


def pad_rows(x: jax.Array, multiple: int) -> jax.Array:
    """[B, T, ...] with zeros, which is padding, at the end of each row, so that `multiple` divides T."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *[(0, 0)] * (x.ndim - 2)))
