"""Rotary positions: the frequencies, and what a rotation does to queries and keys."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models.rope import Rope
from gadjax.models.rotary import Rotary, rope_frequencies, rotary_of_layers, rotate

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_rotation_is_relative():
    """The product of a query and a key depends on their distance alone, and rotation keeps lengths."""
    rotary = Rotary(rope_frequencies(Rope(theta=50.0), 8))
    query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8)

    def product(at: int, of: int) -> float:
        return float(np.sum(rotate(query, np.array([[at]]), rotary) * rotate(key, np.array([[of]]), rotary)))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
    rotated = rotate(query, np.array([[13]]), rotary)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(query), rel=1e-6)
    np.testing.assert_array_equal(rotate(query, np.array([[0]]), rotary), query)


def test_rotation_pairs_the_halves():
    """Channel i is paired with channel i + D / 2, as in Hugging Face's models."""
    x = np.zeros((1, 1, 1, 4), np.float32)
    x[..., 1] = 1
    out = np.asarray(rotate(x, np.array([[1]]), Rotary(np.array([0.0, np.pi / 2], np.float32))))[0, 0, 0]
    np.testing.assert_allclose(out, [0, 0, 0, 1], atol=1e-6)


def test_rotation_keeps_the_dtype():
    assert (
        rotate(jnp.ones((1, 1, 1, 4), jnp.bfloat16), jnp.zeros((1, 1), int), Rotary(np.ones(2))).dtype == jnp.bfloat16
    )


def test_frequencies():
    plain = rope_frequencies(Rope(theta=10_000.0), 64)
    assert plain.shape == (32,)
    np.testing.assert_allclose(plain, 10_000.0 ** (-np.arange(32) / 32), rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(Rope(10_000.0, "linear", 4.0), 64), plain / 4, rtol=1e-6)


def test_llama3_frequencies():
    """Frequencies of short wavelengths stay, those of long ones are divided, and the others lie between."""
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


def test_a_layer_without_positions_turns_nothing():
    rotary = rotary_of_layers((Rope(), None), 8)[1]
    x = normal(2, 5, 3, 8)
    np.testing.assert_array_equal(rotate(x, np.arange(5)[None], rotary), x)


def test_a_part_of_the_channels():
    """The first channels turn as a smaller head would, multiplied by the factor; the others stay."""
    whole, part = (rotary_of_layers((Rope(50.0, partial=p, attention_factor=f),), 8)[0] for p, f in ((1, 1), (0.5, 3)))
    small = rotary_of_layers((Rope(50.0),), 4)[0]
    x, positions = normal(1, 5, 2, 8), np.arange(5)[None]
    turned = rotate(x, positions, part)
    np.testing.assert_allclose(turned[..., :4], 3 * rotate(x[..., :4], positions, small), rtol=1e-5)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert whole.frequencies.shape == (4,) and part.frequencies.shape == (2,)
    with pytest.raises(ValueError, match="different numbers of channels"):
        rotary_of_layers((Rope(), Rope(partial=0.5)), 8)


def test_yarn_and_longrope_frequencies():
    """YaRN keeps the first pairs, divides the last ones and blends between; LongRoPE divides each by its own factor."""
    plain = rope_frequencies(Rope(10_000.0), 64)
    scaled = rope_frequencies(Rope(10_000.0, "yarn", 4.0, original_max_position=2048), 64)
    ratio = plain / scaled
    np.testing.assert_allclose(ratio[:7], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[-8:], 4, rtol=1e-6)
    assert (np.diff(ratio) >= -1e-5).all() and ((ratio > 1.01) & (ratio < 3.99)).sum() > 5
    own = rope_frequencies(Rope(10_000.0, "longrope", factors=(1.0, 2.0)), 4)
    np.testing.assert_allclose(own, [1, 0.005], rtol=1e-6)
