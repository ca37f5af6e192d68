"""The token loop's attention equals a loop over tokens in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.kernels import kv_cache
from gadjax.kernels.group_attention import Lanes, group_attention
from tests.kernels.one_query import normal, one_query


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("block", [2, 3, 100])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_group_attention(kv_heads, block, window):
    """A slot attends over its prompt, which it shares, and over its own tokens so far, and nothing beyond.

    With a window, it attends over the last tokens of these.
    """
    slots, heads, places, samples, width, limit = 5, 4, 3, 2, 7, 6
    query, lengths, own_lengths = normal(slots, heads, 8), np.array([7, 0, 3]), np.array([6, 1, 2, 4, 1])
    kv = lambda rows, width: (normal(rows, width, kv_heads, 8), normal(rows, width, kv_heads, 8))  # noqa: E731
    prompts, responses = kv(places, width), kv(slots, limit)
    lane = np.array([5, 0, 2, 1, 3])  # two samples of each of the first two prompts, one of the third
    slot = np.array([1, 3, 2, 4, 0, 0])
    stored = [
        kv_cache.put_rows(kv_cache.empty(len(key), key.shape[1], kv_heads, 8, "float32", block), key, value, rows)
        for (key, value), rows in ((prompts, np.arange(places)), (responses, np.arange(slots)))
    ]
    args = jnp.asarray(query), stored[:1], lengths, stored[1:], own_lengths, Lanes(slot, lane)
    out = group_attention(*args, window=window)
    for s, head in np.ndindex(slots, heads):
        place, of = lane[s] // samples, head * kv_heads // heads
        keys, values = (
            np.concatenate([of_prompt[place, : lengths[place], of], own[s, : own_lengths[s], of]])[-(window or 0) :]
            for of_prompt, own in zip(prompts, responses, strict=True)
        )
        np.testing.assert_allclose(out[s, head], one_query(query[s, head], keys, values), atol=1e-5)
