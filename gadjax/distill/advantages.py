"""Rewards to advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def group_advantages(rewards: jax.Array) -> jax.Array:
    """(r - mean) / (std + 1e-6) within each prompt's group, unbiased std: [B, N] from [B, N], N >= 2 (GRPO).

    A group of equal rewards, as a collapsed discriminator gives, has advantages of exactly zero.
    """
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    equal = jnp.max(rewards, axis=-1, keepdims=True) == jnp.min(rewards, axis=-1, keepdims=True)
    std = jnp.std(rewards, axis=-1, ddof=1, keepdims=True)
    return jnp.where(equal, 0.0, centred / (std + 1e-6))
