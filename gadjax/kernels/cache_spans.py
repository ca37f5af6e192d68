"""A row's keys and values in one or several caches that follow each other.

CPUs have several. XLA's CPU backend reads a whole array in place, but copies a block that it cuts out of a cache, at
every token. So a row's positions are spread over caches of one block, each as long as all before it together, and a
step reads those that some row has reached. Other platforms have one cache, whose blocks are read as they are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gadjax.kernels import kv_cache
from gadjax.kernels.kv_cache import Cache
from gadjax.kernels.online_softmax import Partial, add

WRITES = "cache_writes"  # the named scope of stored tokens, in profiler traces
FIRST = kv_cache.BLOCK  # positions of the first of several spans; shorter ones were not faster

Spans = tuple[Cache, ...]
AttendCache = Callable[..., Partial]  # `kv_cache.attend`, or a kernel that does the same for whole rows


def doubling(limit: int) -> list[int]:
    """Sizes that add up to `limit`: each as large as all before it together, except the first and a shorter last."""
    sizes = [min(FIRST, limit)]
    while (left := limit - sum(sizes)) > 0:
        sizes.append(min(left, sum(sizes)))
    return sizes


@jax.named_scope(WRITES)
def put_token(spans: Spans, key: jax.Array, value: jax.Array, position: jax.Array) -> Spans:
    """The spans with one more token per row; the arguments are those of `kv_cache.put_token`."""

    def place(start: int, cache: Cache) -> jax.Array:
        # A position of an earlier span must not be negative here: it goes to `limit`, where it is dropped.
        return jnp.where(position < start, cache.limit, position - start) if start else position

    return tuple(kv_cache.put_token(cache, key, value, place(start, cache)) for start, cache in _with_starts(spans))


def put_rows(spans: Spans, key: jax.Array, value: jax.Array, rows: jax.Array) -> Spans:
    """The spans with whole rows replaced; the arguments are those of `kv_cache.put_rows`."""
    part = lambda x, start, cache: x[:, start : start + cache.limit]  # noqa: E731
    return tuple(
        kv_cache.put_rows(cache, part(key, start, cache), part(value, start, cache), rows)
        for start, cache in _with_starts(spans)
    )


def attend(
    query: jax.Array, spans: Spans, length: jax.Array, over: AttendCache, first: jax.Array | None = None
) -> Partial:
    """`kv_cache.attend` over all spans; `over` attends over one of them (see `choose.cache_attention`)."""
    longest = jnp.max(length, initial=0)
    limits = lambda start: () if first is None else (first - start,)  # noqa: E731
    found = over(query, spans[0], length, *limits(0))
    for start, cache in _with_starts(spans)[1:]:

        def further(found, start=start, cache=cache):
            return add(found, over(query, cache, length - start, *limits(start)))

        found = jax.lax.cond(longest > start, further, lambda found: found, found)
    return found


def _with_starts(spans: Spans) -> list[tuple[int, Cache]]:
    """The spans, each with the row's position at which it starts."""
    starts = [0]
    for cache in spans[:-1]:
        starts.append(starts[-1] + cache.limit)
    return list(zip(starts, spans, strict=True))
