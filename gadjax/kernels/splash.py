"""Causal attention on TPUs by JAX's Splash kernels (Pallas)."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import CausalMask, MultiHeadMask

from gadjax.segments import pad_rows

_LANES = 128  # of a TPU's vector unit: the size of a block is a multiple of it
_FUSED_BLOCKS = 4


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`causal_attention` on one TPU; the shapes are the same.

    Blocks above the diagonal are skipped. Rows are filled up to whole blocks with padding, segment 0.

    Args:
      interpret: run in Pallas's interpreter, slowly, on any platform; for tests.
    """
    length, heads, head_dim = query.shape[1:]
    block = block_size(length, query.dtype.itemsize, head_dim)
    query, key, value, segments = (pad_rows(x, block) for x in (query, key, value, segments))
    padded = query.shape[1]
    # One backward kernel in place of two saves two of seven products, but it holds a gradient of the queries for each
    # block of keys until they are summed: good for a few blocks only.
    fused = padded // block <= _FUSED_BLOCKS
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    mask = MultiHeadMask([CausalMask((padded, padded))] * heads)
    kernel: Any = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def of_row(query, key, value, segments):  # [heads, T, D] x 3, [T]
        return kernel(query, key, value, splash.SegmentIds(segments, segments))

    query = query * head_dim**-0.5  # the kernel does not scale
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    out = jax.vmap(of_row)(query, key, value, segments)
    return out.swapaxes(1, 2)[:, :length]


def block_size(length: int, itemsize: int, head_dim: int) -> int:
    """The number of queries, and of keys, that a kernel holds at once: a multiple of 128.

    The largest size fits 16 MiB of vector memory. A longer row takes the size, of those from 384 up, that adds the
    least padding.
    """
    largest = 1024 if itemsize <= 2 and head_dim <= 128 else 512
    if length <= largest:
        return length + -length % _LANES
    return min(range(384, largest + 1, _LANES), key=lambda block: (-length % block, -block))
