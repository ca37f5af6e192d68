"""Which implementation of an operation runs on which platform: one table, and one choosing function per operation.

| operation              | chosen by         | CPU               | CUDA >= 8.0   | TPU >= v4 | elsewhere: plain  |
| ---------------------- | ----------------- | ----------------- | ------------- | --------- | ----------------- |
| causal attention       | attention_backend | blocks            | cudnn         | splash    | plain             |
| attention over a cache | cache_attention   | plain             | triton_decode | plain     | kv_cache.attend   |
| prompts stand once     | shares_prompts    | yes               | yes           | no        | yes               |
| storage of a cache     | empty_cache       | cache_spans       | plain         | plain     | one kv_cache      |
| product of a projection| weight_product    | cpu_products      | plain         | plain     | jnp.tensordot     |
| the same when decoding | outputs_first     | [outputs, inputs] | plain         | plain     | [inputs, outputs] |
| logits of the targets  | gathers_targets   | looked up         | plain         | plain     | a masked sum      |

Why each one, and not the plain version:

- Plain attention holds several arrays of logits [B, N, T, T]. `blocks` (`cpu_blocks.py`) and `splash` hold none, and
  skip blocks above the diagonal; `blocks` also skips every block in which no token sees another. `cudnn` holds one mask
  [B, T, T] and its gradient.
- Splash compares segment ids and takes no other mask, so a group's prompt cannot stand in a row once there.
- `triton_decode` is one kernel. On a GPU, the plain loop copies each block out of the cache and asks the host, at every
  block of every layer, whether there is another.
- `cache_spans` splits a cache, because XLA's CPU backend reads whole arrays in place and copies a part of one.
- `cpu_products` puts the smaller factor left in gradients: XLA's CPU backend transposes the left one, slowly.
- With few rows, a product on a CPU is a tenth faster if each output reads one row of memory.
- On a CPU, a masked sum over the vocabulary is a pass of its own; accelerators fuse it with the softmax. Where the mesh
  splits the vocabulary, a CPU takes the masked sum too.

Dtypes and head sizes: Splash takes bfloat16 and float32 and any head size. cuDNN takes bfloat16 and float16 and head
sizes that are multiples of 8 up to 128. The Triton kernel takes bfloat16 and float16 and head sizes 16, 32, 64 and 128.
Everything else takes any. Splash and the Triton kernel take no sliding window. What a kernel does not take goes to the
plain version.

The mesh decides, or JAX's default device if the mesh is None: a program may be compiled for devices that are not here.
The discriminator's scalar head has no mesh, and so takes the product of JAX's default device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gadjax.kernels import cache_spans, kv_cache, triton_decode
from gadjax.kernels.cache_spans import AttendCache, Spans
from gadjax.kernels.cpu_products import smaller_first_product
from gadjax.parallel.mesh import first_device, platform

Backend = Literal["splash", "cudnn", "blocks", "plain"]


def attention_backend(mesh: Mesh | None, dtype: Any, head_dim: int) -> Backend:
    """The name of the causal attention that training and prefill use."""
    device, dtype = first_device(mesh), jnp.dtype(dtype)
    if device.platform == "tpu":
        # Mosaic cannot multiply bfloat16 matrices on the first generations.
        old = device.device_kind in ("TPU v2", "TPU v3")
        return "splash" if dtype in (jnp.bfloat16, jnp.float32) and not old else "plain"
    if device.platform in ("gpu", "cuda"):
        fits = dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
        return "cudnn" if _is_ampere(device) and fits else "plain"
    return "blocks" if device.platform == "cpu" else "plain"


def shares_prompts(backend: Backend) -> bool:
    """Whether a causal attention knows branches of segments. Splash compares ids for equality and takes no mask."""
    return backend != "splash"


def cache_attention(mesh: Mesh | None, dtype: Any, head_dim: int, window: int | None = None) -> AttendCache:
    """The attention over one KV cache: `kv_cache.attend`, or the Triton kernel where it runs and there is no window.

    The kernel needs a CUDA GPU from Ampere on, half precision, a head size that is a power of two, and a JAX that still
    has Triton, which JAX means to drop.
    """
    fits = jnp.dtype(dtype).itemsize == 2 and head_dim in (16, 32, 64, 128) and window is None
    has_triton = importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    return triton_decode.attend if has_triton and fits and _is_ampere(first_device(mesh)) else kv_cache.attend


def empty_cache(mesh: Mesh | None, rows: int, limit: int, num_kv_heads: int, head_dim: int, dtype: str) -> Spans:
    """A KV cache of zeros for `rows` rows of up to `limit` positions: one cache, or on CPUs several of one block."""
    if platform(mesh) != "cpu":
        return (kv_cache.empty(rows, limit, num_kv_heads, head_dim, dtype),)
    return tuple(
        kv_cache.empty(rows, size, num_kv_heads, head_dim, dtype, block=max(size, kv_cache.BLOCK))
        for size in cache_spans.doubling(limit)
    )


def weight_product(mesh: Mesh | None) -> Callable[..., jax.Array]:
    """The product of activations with a weight: a function with the arguments of `jnp.tensordot`."""
    return smaller_first_product if platform(mesh) == "cpu" else jnp.tensordot


def outputs_first(mesh: Mesh | None) -> bool:
    """Whether the token loop keeps a weight as [*outputs, *inputs]."""
    return platform(mesh) == "cpu"


def gathers_targets(mesh: Mesh | None) -> bool:
    """Whether the targets' logits are looked up by index."""
    return platform(mesh) == "cpu"


def _is_ampere(device: jax.Device) -> bool:
    """Whether a device is a CUDA GPU of compute capability 8.0 or more."""
    try:
        return float(getattr(device, "compute_capability", "")) >= 8.0
    except ValueError:  # other devices have none, and AMD's are names
        return False
