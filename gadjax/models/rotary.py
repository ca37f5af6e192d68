"""Rotary position embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.models.architecture import Rope


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians that each pair of channels turns per position: [head_dim / 2], float32.

    The kind "llama3" keeps short wavelengths, divides long ones by `factor` and blends between the two, as Llama 3.1's
    released code does.
    """
    frequencies = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        wavelengths = 2 * np.pi / frequencies
        turns = rope.original_max_position / wavelengths
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    return frequencies.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Queries or keys turned by their positions.

    A pair is channel i and channel i + D / 2, as in Hugging Face's models. RoFormer (arXiv 2104.09864) pairs
    neighbours.

    Args:
      x: queries or keys [..., T, heads, D].
      positions: [..., T] integer positions.
      frequencies: [D / 2] from `rope_frequencies`.

    Returns:
      [..., T, heads, D] in the dtype of `x`; the rotation itself is in float32.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [..., T, 1, D / 2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
