"""Attention and rotary positions against loops over tokens in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models import cache as caches
from gadjax.models.architecture import Rope
from gadjax.models.attention import Lanes, causal_attention, group_attention, rope_frequencies, rotate
from gadjax.segments import BRANCH

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def one_query(query, keys, values):
    """[D] from one query [D] and its keys and values [T, D]."""
    scores = keys.astype(np.float64) @ query / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_causal_attention(kv_heads):
    """A query sees the tokens of its own segment up to itself, and of its root; a group of heads shares keys."""
    query, key, value = normal(3, 9, 6, 4), normal(3, 9, kv_heads, 4), normal(3, 9, kv_heads, 4)
    branch = 2 + np.array([0, 1, 2]) * BRANCH  # the last row: a sequence, a prompt with two answers, padding
    rows = [1, 1, 1, 2, 2, 3, 3, 3, 3], [1, 1, 1, 1, 1, 1, 0, 0, 0], [1, *branch[[0, 0, 1, 1, 2, 2]], 0, 0]
    segments = np.array(rows)
    out = np.asarray(causal_attention(*map(jnp.asarray, (query, key, value, segments))))
    for b, t in np.ndindex(3, 9):
        if segments[b, t] == 0:
            continue
        seen = [s for s in range(t + 1) if segments[b, s] in (segments[b, t], segments[b, t] % BRANCH)]
        assert len(seen) == (
            t + 1 if b == 1 else [1, 1, 2, 3, 4, 3, 4][t] if b == 2 else [1, 2, 3, 1, 2, 1, 2, 3, 4][t]
        )
        for head in range(6):
            kv = head * kv_heads // 6
            expected = one_query(query[b, t, head], key[b, seen, kv], value[b, seen, kv])
            np.testing.assert_allclose(out[b, t, head], expected, atol=1e-5)
    assert np.isfinite(out).all()  # padding too


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("block", [2, 3, 100])
def test_group_attention(kv_heads, block):
    """Over the prompt that slots share and the slot's own tokens so far, whatever lies beyond them."""
    slots, heads, places, samples, width, limit = 5, 4, 3, 2, 7, 6
    query, lengths, own_lengths = normal(slots, heads, 8), np.array([7, 0, 3]), np.array([6, 1, 2, 4, 1])
    kv = lambda rows, width: (normal(rows, width, kv_heads, 8), normal(rows, width, kv_heads, 8))  # noqa: E731
    prompts, responses = kv(places, width), kv(slots, limit)
    lane = np.array([5, 0, 2, 1, 3])  # two samples each of the first two prompts, one of the third
    slot = np.array([1, 3, 2, 4, 0, 0])
    stored = [
        caches.put_rows(caches.empty(len(key), key.shape[1], kv_heads, 8, "float32", block), key, value, rows)
        for (key, value), rows in ((prompts, np.arange(places)), (responses, np.arange(slots)))
    ]
    out = group_attention(jnp.asarray(query), stored[:1], lengths, stored[1:], own_lengths, Lanes(slot, lane))
    for s, head in np.ndindex(slots, heads):
        place, of = lane[s] // samples, head * kv_heads // heads
        keys, values = (
            np.concatenate([of_prompt[place, : lengths[place], of], own[s, : own_lengths[s], of]])
            for of_prompt, own in zip(prompts, responses, strict=True)
        )
        np.testing.assert_allclose(out[s, head], one_query(query[s, head], keys, values), atol=1e-5)


def test_rotation_is_relative():
    """A query's product with a key depends on their distance alone, and lengths stay."""
    frequencies = rope_frequencies(Rope(theta=50.0), 8)
    query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8)

    def product(at: int, of: int) -> float:
        return float(np.sum(rotate(query, np.array([[at]]), frequencies) * rotate(key, np.array([[of]]), frequencies)))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
    rotated = rotate(query, np.array([[13]]), frequencies)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(query), rel=1e-6)
    np.testing.assert_array_equal(rotate(query, np.array([[0]]), frequencies), query)


def test_rotation_pairs_the_halves():
    """Channel i turns with channel i + D/2 (Hugging Face's layout)."""
    x = np.zeros((1, 1, 1, 4), np.float32)
    x[..., 1] = 1
    out = np.asarray(rotate(x, np.array([[1]]), np.array([0.0, np.pi / 2], np.float32)))[0, 0, 0]
    np.testing.assert_allclose(out, [0, 0, 0, 1], atol=1e-6)


def test_rotation_keeps_the_dtype():
    assert rotate(jnp.ones((1, 1, 1, 4), jnp.bfloat16), jnp.zeros((1, 1), int), np.ones(2)).dtype == jnp.bfloat16


def test_frequencies():
    plain = rope_frequencies(Rope(theta=10_000.0), 64)
    assert plain.shape == (32,)
    np.testing.assert_allclose(plain, 10_000.0 ** (-np.arange(32) / 32), rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(Rope(10_000.0, "linear", 4.0), 64), plain / 4, rtol=1e-6)


def test_llama3_frequencies():
    """Short wavelengths stay, long ones are divided, and those between lie between."""
    rope = Rope(10_000.0, "llama3", 8.0, 1.0, 4.0, 1024)
    plain, scaled = rope_frequencies(Rope(10_000.0), 64), rope_frequencies(rope, 64)
    wavelengths = 2 * np.pi / plain
    short, long = wavelengths < 1024 / 4, wavelengths > 1024 / 1
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.sum() > 2
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
    assert (np.diff(scaled) < 0).all()
