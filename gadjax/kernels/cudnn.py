"""Causal attention on NVIDIA GPUs by cuDNN."""

from __future__ import annotations

import jax

from gadjax.segments import pad_rows, visible

_MULTIPLE = 64  # one tile of cuDNN's kernels, which refuse odd lengths


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, *, implementation: str = "cudnn"
) -> jax.Array:
    """`causal_attention` on one GPU; the shapes are the same.

    Segments become a mask [B, 1, T, T] in the dtype of the queries, which has a gradient of the same size. cuDNN's
    packed layout needs no mask, but it takes a segment for one run of tokens, and `data.packing.one_per_row` leaves
    padding between a prompt and its response.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" in tests.
    """
    length = query.shape[1]
    query, key, value, segments = (pad_rows(x, _MULTIPLE) for x in (query, key, value, segments))
    mask = visible(segments, segments)[:, None]  # [B, 1, T, T]
    # Causality is not in the mask, but a flag: from it the kernel knows which blocks to skip.
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, implementation=implementation)
    return out[:, :length]
