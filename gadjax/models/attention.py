"""Attention and rotary positions: the two operations of the decoder that look across tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gadjax.models import gpu_decode, spans
from gadjax.models.architecture import Rope
from gadjax.models.block_attention import block_attention
from gadjax.models.cache import Cache, Partial, attend, merge
from gadjax.models.flash import Backend, choose_backend, cudnn_attention, over_mesh, splash_attention
from gadjax.models.spans import Spans
from gadjax.parallel.mesh import first_device, platform
from gadjax.segments import visible

CACHED = "cached_attention"  # the scope of what attends over caches, in traces
Over = Callable[[jax.Array, Cache, jax.Array], Partial]


class Lanes(NamedTuple):
    """Which slot's query stands in which lane of which prompt; lane n of prompt g is g * N + n."""

    slot: jax.Array  # [G * N] the slot in each lane; any, where there is none
    lane: jax.Array  # [S] the lane of each slot; any, of a slot that is idle


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
    kernels = {
        "splash": functools.partial(splash_attention, interpret=platform(mesh) != "tpu"),
        "cudnn": cudnn_attention,
        "blocks": block_attention,
    }
    kernel = kernels[backend]
    if mesh is None:
        return kernel(query, key, value, segments)
    return over_mesh(kernel, mesh, query, key, value, segments)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    """`causal_attention` as the compiler makes it, with logits [B, Nq, T, T]: for every platform."""
    length = segments.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal & visible(segments, segments)  # [B, T, T]
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])


def decoding_attention(mesh: Mesh | None, dtype: Any, head_dim: int) -> Over:
    """How this mesh's devices (without one, JAX's default device) attend over caches."""
    return gpu_decode.attend if gpu_decode.serves(first_device(mesh), dtype, head_dim) else attend


@jax.named_scope(CACHED)
def group_attention(
    query: jax.Array,
    prompts: Spans,
    prompt_length: jax.Array,
    responses: Spans,
    response_length: jax.Array,
    lanes: Lanes,
    over: Over = attend,
) -> jax.Array:
    """One token's attention over its prompt, which is read once for all of its samples, and over its own response.

    The queries go to their prompts, not the prompts to their queries: each prompt has N lanes, one for each of its
    samples, and what is attended over it comes back to the slots.

    Args:
      query: [S, Nq, D], of the slots.
      prompts: of G rows.
      prompt_length: [G], what is seen of each.
      responses: of S rows.
      response_length: [S], what is seen of each, the query's own token included; at least 1.
      lanes: where each slot's prompt is.
      over: attends over a cache: `cache.attend`, or what `decoding_attention` chose.

    Returns:
      [S, Nq, D] in the query's dtype.
    """
    slots, heads, head_dim = query.shape
    kv_heads, count = responses[0].value.shape[2], prompts[0].value.shape[1]
    grouped = (query * head_dim**-0.5).reshape(slots, kv_heads, -1, head_dim)
    own = spans.attend(grouped, responses, response_length, over)
    asked = grouped[lanes.slot].reshape(count, -1, *grouped.shape[1:])  # [G, N, Nkv, Q, D]
    asked = asked.swapaxes(1, 2).reshape(count, kv_heads, -1, head_dim)
    shared = spans.attend(asked, prompts, prompt_length, over)  # [G, Nkv, N * Q]

    def back(x):
        x = x.reshape(count, kv_heads, -1, heads // kv_heads, *x.shape[3:]).swapaxes(1, 2)
        return x.reshape(-1, *x.shape[2:])[lanes.lane]

    return merge(jax.tree.map(back, shared), own).reshape(query.shape).astype(query.dtype)
