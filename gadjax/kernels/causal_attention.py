"""Causal attention over packed rows, in training and prefill."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gadjax.kernels import choose
from gadjax.kernels.cpu_blocks import block_attention
from gadjax.kernels.splash import splash_attention
from gadjax.parallel.mesh import ACTIVATION_RULES, dividing_axes, platform
from gadjax.segments import Window, near, pad_rows, visible

_CUDNN_MULTIPLE = 64  # one tile of cuDNN's kernels, which refuse odd lengths


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    mesh: Mesh | None = None,
    backend: choose.Backend | None = None,
    window: Window | None = None,
) -> jax.Array:
    """Causal attention inside each segment of a packed row, by the kernel of the platform (`kernels.choose`).

    Args:
      query: [B, T, Nq, D].
      key, value: [B, T, Nkv, D], Nq a multiple of Nkv.
      segments: [B, T] int32 ids (`gadjax.segments`); branches only if the backend `shares_prompts`.
      mesh: devices that rows and heads are spread over, whose platform decides; None for JAX's default device.
      backend: overrides `choose.attention_backend`; "splash" is interpreted, slowly, on anything but a TPU.
      window: how far back a token sees; None if to the start. Splash takes none, so that TPUs get the plain attention.

    Returns:
      [B, T, Nq, D].
    """
    backend = backend or choose.attention_backend(mesh, query.dtype, query.shape[-1])
    if backend == "plain" or (backend == "splash" and window is not None):
        return plain_attention(query, key, value, segments, window)
    kernels: dict[str, Callable[..., jax.Array]] = {
        "splash": functools.partial(splash_attention, interpret=platform(mesh) != "tpu"),
        "cudnn": cudnn_attention,
        "blocks": block_attention,
    }
    kernel = kernels[backend]
    limits = () if window is None else (window,)
    if mesh is None:
        return kernel(query, key, value, segments, *limits)
    return over_mesh(kernel, mesh, query, key, value, segments, *limits)


def plain_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, window: Window | None = None
) -> jax.Array:
    """`causal_attention` as the compiler makes it, with float32 logits [B, Nq, T, T]: for every platform."""
    length = segments.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal & visible(segments, segments)  # [B, T, T]
    if window is not None:
        mask &= near(window.positions, window.positions, window.size)
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    window: Window | None = None,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """`causal_attention` on one GPU; the shapes are the same.

    Segments become a mask [B, 1, T, T] in the dtype of the queries, which has a gradient of the same size. cuDNN's
    packed layout needs no mask, but it takes a segment for one run of tokens, and `data.packing.one_per_row` leaves
    padding between a prompt and its response.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" in tests.
    """
    length = query.shape[1]
    query, key, value, segments = (pad_rows(x, _CUDNN_MULTIPLE) for x in (query, key, value, segments))
    mask = visible(segments, segments)[:, None]  # [B, 1, T, T]
    if window is not None:
        positions = pad_rows(window.positions, _CUDNN_MULTIPLE)
        mask &= near(positions, positions, window.size)[:, None]
    # Causality is not in the mask, but a flag: from it the kernel knows which blocks to skip.
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, implementation=implementation)
    return out[:, :length]


def over_mesh(
    kernel: Callable[..., jax.Array],
    mesh: Mesh,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *window: Window,
) -> jax.Array:
    """`kernel` on each device's own rows and heads; the compiler cannot split a kernel by itself.

    Rows are split over the batch axes and heads over the tensor axis, if they divide. If the heads of the keys do not,
    each device has all of them and takes those that its queries belong to.
    """
    rows = dividing_axes(mesh, ACTIVATION_RULES, "batch", query.shape[0]) or None
    heads = dividing_axes(mesh, ACTIVATION_RULES, "heads", query.shape[2]) or None
    kv_heads = dividing_axes(mesh, ACTIVATION_RULES, "kv_heads", key.shape[2]) or None
    group = query.shape[2] // key.shape[2]

    def local(query, key, value, segments, *window):
        if heads and not kv_heads:
            first, count = query.shape[2] * jax.lax.axis_index(heads), query.shape[2]
            if group % count == 0:  # all queries of this device share one head of the keys
                key, value = (jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2) for x in (key, value))
            else:  # they belong to several groups
                key, value = (jnp.take(x, (first + jnp.arange(count)) // group, axis=2) for x in (key, value))
        return kernel(query, key, value, segments, *(Window(*x) for x in window))

    of_queries, of_keys = P(rows, None, heads), P(rows, None, kv_heads)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_queries, of_keys, of_keys, P(rows), *((P(rows), P()) for _ in window)),
        out_specs=of_queries,
        check_vma=False,  # Pallas's calls do not say what their results vary over
    )(query, key, value, segments, *((x.positions, jnp.asarray(x.size)) for x in window))
