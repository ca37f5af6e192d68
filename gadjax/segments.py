"""Segment ids: which tokens of a packed row see each other.

A token sees those of its own id that are not after it, and those of its id's root. An id below `BRANCH` is its own
root; `root + k * BRANCH`, k >= 1, are branches of it. So a group's prompt stands in a row once, as a root, with its
responses as branches that see the prompt and themselves, not each other; and a row without branches is one of
sequences that see only themselves. 0 is padding, which sees padding: its softmax stays finite, and nothing reads it.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

BRANCH = 1 << 16

Ids = TypeVar("Ids", jax.Array, np.ndarray, int)


def root(segments: Ids) -> Ids:
    """The id that a token sees beside its own: the same one outside of branches."""
    return segments % BRANCH


def visible(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """[B, T, S] bool: whether tokens of ids [B, T] may see those of ids [B, S] of their row, whatever their order."""
    of_query, of_key = queries[:, :, None], keys[:, None, :]
    return (of_key == of_query) | (of_key == root(of_query))


def pad_rows(x: jax.Array, multiple: int) -> jax.Array:
    """[B, T, ...] with zeros, which is padding, at the end of each row, so that `multiple` divides T."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *[(0, 0)] * (x.ndim - 2)))
