"""Causal attention kernels that hold no logits: one a platform, each on its own part of the rows and heads.

| backend  | runs on                   | dtypes    | head sizes         | lengths          | holds of size T²        |
|----------|---------------------------|-----------|--------------------|------------------|-------------------------|
| `splash` | TPU v4 and later          | bf16, f32 | any                | padded to blocks | nothing                 |
| `cudnn`  | CUDA from Ampere (8.0) on | bf16, f16 | multiples of 8, up | padded to 64     | a mask in the dtype and |
|          |                           |           | to 128             |                  | its gradient, [B, T, T] |
| `blocks` | CPUs                      | any       | any                | padded to 64     | nothing                 |
| `plain`  | everywhere                | any       | any                | any              | several float32 arrays  |
|          |                           |           |                    |                  | of logits, [B, N, T, T] |

`choose_backend` takes the first that serves the devices which the program is compiled for; these need not be here.
Away from TPUs `splash` runs in Pallas's interpreter, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import CausalMask, MultiHeadMask
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gadjax.parallel.mesh import ACTIVATION_RULES, dividing_axes, first_device
from gadjax.segments import visible

Backend = Literal["splash", "cudnn", "blocks", "plain"]
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

_LANES = 128  # of a TPU's vector unit: blocks are multiples of it
_CUDNN_MULTIPLE = 64  # one tile of its kernels; an odd length would be refused
_FUSED_BLOCKS = 4


def choose_backend(mesh: Mesh | None, dtype: Any, head_dim: int) -> Backend:
    """The backend that serves this mesh's devices (without one, JAX's default device), by the module's table."""
    device = first_device(mesh)
    dtype = jnp.dtype(dtype)
    if device.platform == "tpu":
        # Mosaic multiplies no bfloat16 matrices on the first generations.
        old = device.device_kind in ("TPU v2", "TPU v3")
        return "splash" if dtype in (jnp.bfloat16, jnp.float32) and not old else "plain"
    if device.platform in ("gpu", "cuda"):
        return (
            "cudnn" if is_ampere(device) and dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128 else "plain"
        )
    return "blocks" if device.platform == "cpu" else "plain"


def is_ampere(device: jax.Device) -> bool:
    """Whether a device is a CUDA GPU of compute capability 8.0 or more."""
    try:
        return float(getattr(device, "compute_capability", "")) >= 8.0
    except ValueError:  # no GPU has one, and AMD's are names
        return False


def shares_prompts(backend: Backend) -> bool:
    """Whether a backend knows branches of segments: Splash compares ids, and takes no other mask."""
    return backend != "splash"


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`causal_attention` on one TPU by JAX's Splash kernels; shapes are `causal_attention`'s.

    Blocks above the diagonal are skipped. The length is filled up to whole blocks with padding, segment 0.
    """
    length, heads, head_dim = query.shape[1:]
    block = block_size(length, query.dtype.itemsize, head_dim)
    query, key, value, segments = (lengthen(x, block) for x in (query, key, value, segments))
    padded = query.shape[1]
    # One backward kernel in place of two saves two of seven products, but holds a gradient of the queries for each
    # block of keys until they are summed.
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
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def of_row(query, key, value, segments):  # [heads, T, D] x 3, [T]
        return kernel(query, key, value, splash.SegmentIds(segments, segments))

    query = query * head_dim**-0.5  # the kernel does not scale
    out = jax.vmap(of_row)(*(x.swapaxes(1, 2) for x in (query, key, value)), segments)
    return out.swapaxes(1, 2)[:, :length]


def block_size(length: int, itemsize: int, head_dim: int) -> int:
    """Queries, and keys, that Splash's kernels hold at once: a multiple of 128.

    At most what fits 16 MiB of vector memory; of the sizes down to 384, the largest that pads the length the least.
    """
    largest = 1024 if itemsize <= 2 and head_dim <= 128 else 512
    if length <= largest:
        return length + -length % _LANES
    return min(range(384, largest + 1, _LANES), key=lambda block: (-length % block, -block))


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, *, implementation: str = "cudnn"
) -> jax.Array:
    """`causal_attention` on one GPU by cuDNN; shapes are `causal_attention`'s.

    The segments are a mask. cuDNN's packed layout would need none, but knows a segment as one run of tokens, and
    `data.packing.one_per_row` leaves padding between a prompt and its response.
    """
    length = query.shape[1]
    query, key, value, segments = (lengthen(x, _CUDNN_MULTIPLE) for x in (query, key, value, segments))
    mask = visible(segments, segments)[:, None]  # [B, 1, T, T]
    # Causality apart from the mask: so the kernel knows which blocks to skip.
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True, implementation=implementation)
    return out[:, :length]


def over_mesh(
    kernel: Kernel, mesh: Mesh, query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array
) -> jax.Array:
    """`kernel` on each device's part: the compiler cannot split one by itself.

    Rows are split over the batch axes and heads over the tensor axis where they divide. Where the heads of the keys
    do not, each device has all of them and takes those that its queries belong to.
    """
    rows = dividing_axes(mesh, ACTIVATION_RULES, "batch", query.shape[0]) or None
    heads = dividing_axes(mesh, ACTIVATION_RULES, "heads", query.shape[2]) or None
    kv_heads = dividing_axes(mesh, ACTIVATION_RULES, "kv_heads", key.shape[2]) or None
    group = query.shape[2] // key.shape[2]

    def local(query, key, value, segments):
        if heads and not kv_heads:
            first, count = query.shape[2] * jax.lax.axis_index(heads), query.shape[2]
            if group % count == 0:
                key, value = (jax.lax.dynamic_slice_in_dim(x, first // group, 1, axis=2) for x in (key, value))
            else:  # its queries are parts of several groups
                key, value = (jnp.take(x, (first + jnp.arange(count)) // group, axis=2) for x in (key, value))
        return kernel(query, key, value, segments)

    of_queries, of_keys = P(rows, None, heads), P(rows, None, kv_heads)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_queries, of_keys, of_keys, P(rows)),
        out_specs=of_queries,
        check_vma=False,  # Pallas's calls do not say what their results vary over
    )(query, key, value, segments)


def lengthen(x: jax.Array, multiple: int) -> jax.Array:
    """[B, T, ...] with zeros at the end of each row up to a multiple."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *[(0, 0)] * (x.ndim - 2)))
