"""Rotary position embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.models.rope import Rope


class Rotary(NamedTuple):
    """How one layer turns its queries and keys, or, with a leading axis of layers, how each does.

    Attributes:
      frequencies: [pairs] radians that each pair of channels turns per position. Channels beyond the pairs stay.
      factor: [] by which what is turned is multiplied; None for 1.
    """

    frequencies: Any
    factor: Any = None


def rotary_of_layers(ropes: Sequence[Rope | None], head_dim: int) -> list[Rotary]:
    """One `Rotary` of constants per layer, all of one shape. A layer without an embedding turns by nothing."""
    pairs = {len(rope_frequencies(rope, head_dim)) for rope in set(ropes) if rope} or {head_dim // 2}
    if len(pairs) > 1:
        raise ValueError("the layers turn different numbers of channels")
    still = np.zeros(pairs.pop(), np.float32)
    scaled = any(rope and rope.attention_factor != 1 for rope in ropes)

    def of_layer(rope: Rope | None) -> Rotary:
        frequencies = rope_frequencies(rope, head_dim) if rope else still
        return Rotary(frequencies, np.float32(rope.attention_factor if rope else 1) if scaled else None)

    return [of_layer(rope) for rope in ropes]


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians that each pair of channels turns per position: [turned channels / 2], float32.

    The kind "llama3" keeps short wavelengths, divides long ones by `factor` and blends between the two, as Llama 3.1's
    released code does. The kind "yarn" blends over the channels, between those of `beta_fast` and `beta_slow` turns.
    """
    size = int(head_dim * rope.partial)
    frequencies = 1.0 / rope.theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        wavelengths = 2 * np.pi / frequencies
        turns = rope.original_max_position / wavelengths
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    elif rope.kind == "yarn":
        # The channel that turns so often over the original context, rounded outwards.
        channel = lambda turns: _yarn_channel(rope, size, turns)  # noqa: E731
        low, high = max(math.floor(channel(rope.beta_fast)), 0), min(math.ceil(channel(rope.beta_slow)), size - 1)
        divided = np.clip((np.arange(size // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
        frequencies = (1 - divided) * frequencies + divided * frequencies / rope.factor
    elif rope.kind == "longrope":
        frequencies = frequencies / np.array(rope.factors)
    return frequencies.astype(np.float32)


def _yarn_channel(rope: Rope, size: int, turns: float) -> float:
    """The index of the pair of channels that turns so often over the original context, as a real number."""
    return size * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def rotate(x: jax.Array, positions: jax.Array, rotary: Rotary) -> jax.Array:
    """Queries or keys turned by their positions.

    Of the 2 P turned channels, a pair is channel i and channel i + P, as in Hugging Face's models. RoFormer
    (arXiv 2104.09864) pairs neighbours.

    Args:
      x: queries or keys [..., T, heads, D].
      positions: [..., T] integer positions.
      rotary: of one layer.

    Returns:
      [..., T, heads, D] in the dtype of `x`; the rotation itself is in float32.
    """
    angles = positions[..., None, None].astype(jnp.float32) * rotary.frequencies  # [..., T, 1, P]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rotary.factor is not None:
        cos, sin = cos * rotary.factor, sin * rotary.factor
    turned = 2 * rotary.frequencies.shape[-1]
    first, second = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return rotated if turned == x.shape[-1] else jnp.concatenate([rotated, x[..., turned:]], axis=-1)
