"""Attention of the token loop: over a prompt that several samples share, and over each sample's own response."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gadjax.kernels import cache_spans, kv_cache
from gadjax.kernels.cache_spans import AttendCache, Spans
from gadjax.kernels.online_softmax import merge

CACHED = "cached_attention"  # the named scope of attention over caches, in profiler traces


class Lanes(NamedTuple):
    """The places of the slots' queries. Each of G prompts has N lanes; lane n of prompt g has the number g * N + n."""

    slot: jax.Array  # [G * N] the slot of each lane; any number for a lane without one
    lane: jax.Array  # [S] the lane of each slot; any number for a slot that is idle


@jax.named_scope(CACHED)
def group_attention(
    query: jax.Array,
    prompts: Spans,
    prompt_length: jax.Array,
    responses: Spans,
    response_length: jax.Array,
    lanes: Lanes,
    over: AttendCache = kv_cache.attend,
    window: int | None = None,
) -> jax.Array:
    """One token's attention over its prompt and over its own response.

    A prompt is read once for all of its samples: the queries go to their prompts, and the results come back.

    Args:
      query: [S, Nq, D], one per slot.
      prompts: hold G rows.
      prompt_length: [G] tokens that are seen of each prompt.
      responses: hold S rows.
      response_length: [S] tokens that are seen of each response, the query's own included; at least 1.
      lanes: which prompt a slot belongs to.
      over: attends over one cache; see `choose.cache_attention`.
      window: tokens that the query sees, itself included, of prompt and response together; None for all.

    Returns:
      [S, Nq, D] in the query's dtype.
    """
    slots, heads, head_dim = query.shape
    kv_heads, count = responses[0].value.shape[2], prompts[0].value.shape[1]
    grouped = (query * head_dim**-0.5).reshape(slots, kv_heads, -1, head_dim)
    # Each slot over its own response.
    first = None if window is None else _repeat((response_length - window)[:, None], grouped.shape[2])
    own = cache_spans.attend(grouped, responses, response_length, over, first)
    # The queries of a prompt's lanes, side by side, over that prompt.
    asked = grouped[lanes.slot].reshape(count, -1, *grouped.shape[1:])  # [G, N, Nkv, Q, D]
    asked = asked.swapaxes(1, 2).reshape(count, kv_heads, -1, head_dim)
    if window is not None:
        first = prompt_length[:, None] + response_length[lanes.slot].reshape(count, -1) - window  # [G, N]
        first = _repeat(first, grouped.shape[2])
    shared = cache_spans.attend(asked, prompts, prompt_length, over, first)  # [G, Nkv, N * Q]

    # From lanes back to slots.
    def back(x):
        x = x.reshape(count, kv_heads, -1, heads // kv_heads, *x.shape[3:]).swapaxes(1, 2)
        return x.reshape(-1, *x.shape[2:])[lanes.lane]

    return merge(jax.tree.map(back, shared), own).reshape(query.shape).astype(query.dtype)


def _repeat(first: jax.Array, queries: int) -> jax.Array:
    """[R, N] of each lane as [R, N * Q], for each of its queries."""
    return jnp.repeat(first, queries, axis=1)
