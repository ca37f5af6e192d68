"""Attention and rotary positions: the two operations of the decoder that look across tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gadjax.models.config import Rope
from gadjax.models.flash import Backend, choose_backend, cudnn_attention, over_mesh, splash_attention
from gadjax.segments import visible


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Rotation per position of each pair of channels, in radians: [head_dim / 2], float32.

    `llama3` keeps short wavelengths, divides long ones by `factor` and blends between (Llama 3.1's released code).
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
    """Rotary position embedding (RoFormer, with Hugging Face's split of a head into halves).

    Args:
      x: [..., T, heads, D] queries or keys.
      positions: [..., T] integer positions.
      frequencies: [D / 2] from `rope_frequencies`.

    Returns:
      [..., T, heads, D] in x's dtype; the rotation itself is float32.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [..., T, 1, D / 2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    mesh: Mesh | None = None,
    backend: Backend | None = None,
) -> jax.Array:
    """Causal attention inside each segment of a packed row, by the kernel of the platform.

    Args:
      query: [B, T, Nq, D].
      key, value: [B, T, Nkv, D], Nq a multiple of Nkv.
      segments: [B, T] int32 ids (`gadjax.segments`); branches only where the backend `shares_prompts`.
      mesh: devices that rows and heads are spread over, and whose platform chooses; None for JAX's default device.
      backend: overrides `flash.choose_backend`; "splash" away from TPUs is interpreted, slowly.

    Returns:
      [B, T, Nq, D].
    """
    backend = backend or choose_backend(mesh, query.dtype, query.shape[-1])
    if backend == "plain":
        return plain_attention(query, key, value, segments)
    if backend == "splash":
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        kernel = functools.partial(splash_attention, interpret=platform != "tpu")
    else:
        kernel = cudnn_attention
    if mesh is None:
        return kernel(query, key, value, segments)
    return over_mesh(kernel, mesh, query, key, value, segments)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    """`causal_attention` as the compiler makes it, with logits [B, Nq, T, T]: for every platform."""
    length = segments.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal & visible(segments)  # [B, T, T]
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])


def group_attention(
    query: jax.Array,
    prompt: tuple[jax.Array, jax.Array],
    prompt_length: jax.Array,
    response: tuple[jax.Array, jax.Array],
    response_length: jax.Array,
) -> jax.Array:
    """One token's attention over its prompt, stored once for the group's N samples, and its own response.

    Args:
      query: [B, N, Nq, D].
      prompt: keys and values, each [B, P, Nkv, D].
      prompt_length: [B] tokens of the prompt.
      response: keys and values, each [B, N, T, Nkv, D].
      response_length: scalar, response tokens stored so far, the query's own included.

    Returns:
      [B, N, Nq, D].
    """
    (prompt_key, prompt_value), (key, value) = prompt, response
    num_kv_heads, head_dim = key.shape[-2:]
    grouped = query.reshape(*query.shape[:2], num_kv_heads, -1, head_dim)  # [B, N, Nkv, G, D]
    grouped = grouped * head_dim**-0.5
    over_prompt = jnp.einsum("bnkgd,bpkd->bnkgp", grouped, prompt_key, preferred_element_type=jnp.float32)
    over_response = jnp.einsum("bnkgd,bntkd->bnkgt", grouped, key, preferred_element_type=jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    in_prompt = jnp.arange(prompt_key.shape[1]) < prompt_length[:, None]  # [B, P]
    over_prompt = jnp.where(in_prompt[:, None, None, None], over_prompt, lowest)
    over_response = jnp.where(jnp.arange(key.shape[2]) < response_length, over_response, lowest)
    weights = jax.nn.softmax(jnp.concatenate([over_prompt, over_response], axis=-1), axis=-1).astype(query.dtype)
    on_prompt, on_response = jnp.split(weights, [prompt_key.shape[1]], axis=-1)
    mixed = jnp.einsum("bnkgp,bpkd->bnkgd", on_prompt, prompt_value)
    mixed += jnp.einsum("bnkgt,bntkd->bnkgd", on_response, value)
    return mixed.reshape(query.shape)
