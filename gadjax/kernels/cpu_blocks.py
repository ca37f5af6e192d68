"""Causal attention for CPUs: a loop over blocks that XLA compiles, without logits of the size T x T.

The loop goes over pairs of a block of queries and a block of keys, for all rows of the batch at once. It leaves out the
pairs in which no row sees anything. So branches of a prompt do not pay for each other, and rows that are filled alike
cost what their sequences cost; otherwise each row pays for the pairs that any row needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.kernels.online_softmax import Partial, nothing, repeat, update
from gadjax.segments import BRANCH, Window, near, pad_rows, root, visible

BLOCK = 64


def block_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    window: Window | None = None,
    *,
    block: int = BLOCK,
) -> jax.Array:
    """`causal_attention`, with the same shapes; `block` is the number of tokens of a block.

    At padding the result is finite and means nothing; it is zero where a block is padding in every row.
    """
    length, heads, head_dim = query.shape[1:]
    kv_heads = key.shape[2]
    query, key, value, segments = (pad_rows(x, block) for x in (query, key, value, segments))
    ids = _in_blocks(segments, block)  # [n, B, block]
    if window is not None:
        window = Window(_in_blocks(pad_rows(window.positions, block), block), jnp.asarray(window.size))
    grouped = query.reshape(*query.shape[:2], kv_heads, -1, head_dim) * head_dim**-0.5
    query = _in_blocks(grouped, block).transpose(0, 1, 3, 4, 2, 5)  # [n, B, Nkv, G, block, D]
    query = query.reshape(*query.shape[:3], -1, head_dim)
    key, value = (_in_blocks(x, block).swapaxes(2, 3) for x in (key, value))  # [n, B, Nkv, block, D]
    out = _attention(query, key, value, ids, window)
    out = out.reshape(*out.shape[:3], -1, block, head_dim).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(out.shape[0], -1, heads, head_dim)[:, :length]


def _in_blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] as [T / block, B, block, ...]."""
    return x.reshape(x.shape[0], -1, block, *x.shape[2:]).swapaxes(0, 1)


class _Pairs(NamedTuple):
    """Pairs of blocks; the first `count` of them are those in which something is seen."""

    queries: jax.Array
    keys: jax.Array
    count: jax.Array  # type: ignore[assignment]  # no tuple's method is called


def _pairs(ids: jax.Array, window: Window | None = None) -> _Pairs:
    """The pairs in which some row may see something: the id of a query, or its root, is among the ids of the keys.

    Ids [n, B, block] are in order within a row: a root, its branches, the next root. So the least and the largest id
    of a block of keys bound what may be in it.
    """
    order = lambda x: root(x) * (1 << 15) + x // BRANCH  # noqa: E731
    place, held = order(ids), ids > 0
    # The least and the largest id of each block of keys, and which queries have an id between.
    low = jnp.min(jnp.where(held, place, np.iinfo(np.int32).max), axis=-1)[None, ..., None]  # [1, n, B, 1] of keys
    high = jnp.max(jnp.where(held, place, -1), axis=-1)[None, ..., None]
    seen = False
    for of_query in (place, order(root(ids))):
        of_query = of_query[:, None]  # [n, 1, B, block]
        seen |= (low <= of_query) & (of_query <= high) & held[:, None]
    if window is not None:  # how far back the queries' window reaches, and the last position in a block of keys
        back, last = window.positions - window.size, jnp.max(window.positions, axis=-1)
        seen &= back[:, None] < last[None, ..., None]
    # The pairs up to the diagonal, those that are needed first.
    queries, keys = np.tril_indices(ids.shape[0])
    needed = jnp.any(seen, axis=(2, 3))[queries, keys]
    chosen = jnp.argsort(~needed, stable=True)
    return _Pairs(jnp.asarray(queries)[chosen], jnp.asarray(keys)[chosen], jnp.sum(needed))


def _over_pairs(pairs: _Pairs, step: Callable[..., Any], state: Any) -> Any:
    """The state after `step(state, i, j)` for each pair of a block i of queries and a block j of keys."""
    one = lambda place, state: step(state, pairs.queries[place], pairs.keys[place])  # noqa: E731
    return repeat(pairs.count, pairs.queries.shape[0], one, state)


def _logits(
    query: jax.Array, key: jax.Array, ids: jax.Array, window: Window | None, i: jax.Array, j: jax.Array
) -> jax.Array:
    """Logits [B, Nkv, G * block, block] of block i's queries and block j's keys; the dtype's lowest where unseen.

    The shapes are [B, Nkv, G * block, D] for queries and [B, Nkv, block, D] for keys.
    """
    block, wide = key.shape[2], _wide(query)
    logits = jnp.einsum("bkqd,bktd->bkqt", query, key, preferred_element_type=wide)
    after = i * block + jnp.arange(block)[:, None] < j * block + jnp.arange(block)
    seen = visible(ids[i], ids[j]) & ~after  # [B, block, block]
    if window is not None:
        seen &= near(window.positions[i], window.positions[j], window.size)
    seen = jnp.tile(seen, (1, query.shape[2] // block, 1))[:, None]
    return jnp.where(seen, logits, jnp.finfo(wide).min)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(jnp.float32, x.dtype)


@jax.custom_vjp
def _attention(query, key, value, ids, window):
    return _forward(query, key, value, ids, window)[0]


def _forward(query, key, value, ids, window):
    """The attention, and what the backward pass needs: the arguments, the pairs, the result and the normalizers."""
    wide, pairs = _wide(query), _pairs(ids, window)

    def step(state, i, j):
        def times_values(weights):
            return jnp.einsum("bkqt,bktd->bkqd", weights.astype(value.dtype), value[j], preferred_element_type=wide)

        so_far = Partial(*(x[i] for x in state))
        new = update(so_far, _logits(query[i], key[j], ids, window, i, j), times_values)
        return Partial(*(x.at[i].set(part) for x, part in zip(state, new, strict=True)))

    mixed, top, total = _over_pairs(pairs, step, nothing(query.shape, wide))
    # Blocks in which nothing is seen have a sum of zero, and a result of zero.
    empty = total == 0
    out = jnp.where(empty[..., None], 0.0, mixed / jnp.where(empty, 1.0, total)[..., None]).astype(query.dtype)
    normalizer = jnp.where(empty, 0.0, top + jnp.log(jnp.where(empty, 1.0, total)))
    return out, (query, key, value, ids, window, pairs, out, normalizer)


def _backward(residuals, of_out):
    """Gradients by FlashAttention's backward pass: each pair's logits and weights are computed again."""
    query, key, value, ids, window, pairs, out, normalizer = residuals
    wide = _wide(query)
    mean = jnp.sum(of_out.astype(wide) * out.astype(wide), axis=-1)

    def step(state, i, j):
        of_query, of_key, of_value = state
        dot = functools.partial(jnp.einsum, preferred_element_type=wide)
        weights = jnp.exp(_logits(query[i], key[j], ids, window, i, j) - normalizer[i][..., None])
        slope = weights * (dot("bkqd,bktd->bkqt", of_out[i], value[j]) - mean[i][..., None])
        weights, slope = weights.astype(query.dtype), slope.astype(query.dtype)
        return (
            of_query.at[i].add(dot("bkqt,bktd->bkqd", slope, key[j])),
            of_key.at[j].add(dot("bkqt,bkqd->bktd", slope, query[i])),
            of_value.at[j].add(dot("bkqt,bkqd->bktd", weights, of_out[i])),
        )

    zeros = tuple(jnp.zeros(x.shape, wide) for x in (query, key, value))
    found = _over_pairs(pairs, step, zeros)
    return *(x.astype(query.dtype) for x in found), None, None


_attention.defvjp(_forward, _backward)
