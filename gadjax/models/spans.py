"""A row's keys and values over caches that follow each other, so that CPUs read no more than what is stored.

XLA's CPU backend copies a block out of a cache before its products, at every token. A whole array it reads where it
lies: there a row's positions are spread over arrays, each as long as all before it together, of which a step reads
those that some row has reached. Elsewhere one cache holds them all, whose blocks are read as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gadjax.models import cache as caches
from gadjax.models.cache import Cache, Partial
from gadjax.parallel.mesh import platform

WRITES = "cache_writes"  # the scope of tokens that are stored, in traces
FIRST = caches.BLOCK  # positions of the first span of several: smaller ones were not faster
Spans = tuple[Cache, ...]


def empty(mesh: Mesh | None, rows: int, limit: int, num_kv_heads: int, head_dim: int, dtype: str) -> Spans:
    """Spans of zeros for `rows` rows of up to `limit` positions, as this mesh's devices read them."""
    if platform(mesh) != "cpu":
        return (caches.empty(rows, limit, num_kv_heads, head_dim, dtype),)
    of = lambda size: caches.empty(rows, size, num_kv_heads, head_dim, dtype, block=max(size, caches.BLOCK))  # noqa: E731
    return tuple(of(size) for size in doubling(limit))  # of one block each


def doubling(limit: int) -> list[int]:
    """Sizes that add up to `limit`: each as large as all before it together, but for the first and a shorter last."""
    sizes = [min(FIRST, limit)]
    while (left := limit - sum(sizes)) > 0:
        sizes.append(min(left, sum(sizes)))
    return sizes


@jax.named_scope(WRITES)
def put_token(spans: Spans, key: jax.Array, value: jax.Array, position: jax.Array) -> Spans:
    """The spans with one more token a row; the arguments are those of `cache.put_token`."""

    def place(start: int, cache: Cache) -> jax.Array:  # beyond the cache, where it belongs to one before
        return jnp.where(position < start, cache.limit, position - start) if start else position

    return tuple(caches.put_token(cache, key, value, place(start, cache)) for start, cache in _placed(spans))


def put_rows(spans: Spans, key: jax.Array, value: jax.Array, rows: jax.Array) -> Spans:
    """The spans with whole rows replaced; the arguments are those of `cache.put_rows`."""
    part = lambda x, start, cache: x[:, start : start + cache.limit]  # noqa: E731
    return tuple(
        caches.put_rows(cache, part(key, start, cache), part(value, start, cache), rows)
        for start, cache in _placed(spans)
    )


def attend(
    query: jax.Array, spans: Spans, length: jax.Array, over: Callable[[jax.Array, Cache, jax.Array], Partial]
) -> Partial:
    """Attention of some queries a row over the row's first positions.

    Args:
      query: [R, Nkv, Q, D], scaled.
      spans: of R rows.
      length: [R] positions that a row's queries see; a row of 0 weighs nothing in `merge`.
      over: attends over one cache: `cache.attend` or another that does the same.

    Returns:
      A `Partial` of [R, Nkv, Q].
    """
    longest = jnp.max(length, initial=0)
    found = over(query, spans[0], length)
    for start, cache in _placed(spans)[1:]:

        def further(found, start=start, cache=cache):
            return caches.add(found, over(query, cache, length - start))

        found = jax.lax.cond(longest > start, further, lambda found: found, found)
    return found


def _placed(spans: Spans) -> list[tuple[int, Cache]]:
    """Each span after the position that it starts at."""
    starts = [0]
    for cache in spans[:-1]:
        starts.append(starts[-1] + cache.limit)
    return list(zip(starts, spans, strict=True))
