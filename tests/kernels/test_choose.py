"""Which implementation of an operation runs on which devices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gadjax.kernels import choose, kv_cache, triton_decode


def device(platform: str, kind: str = "", **fields: str) -> SimpleNamespace:
    return SimpleNamespace(platform=platform, device_kind=kind, **fields)


@pytest.mark.parametrize(
    ("where", "dtype", "head_dim", "backend"),
    [
        (device("tpu", "TPU v6 lite"), "bfloat16", 128, "splash"),
        (device("tpu", "TPU v4"), "float32", 64, "splash"),
        (device("tpu", "TPU v3"), "bfloat16", 128, "plain"),
        (device("tpu", "TPU v5p"), "float16", 128, "plain"),
        (device("gpu", "NVIDIA H100", compute_capability="9.0"), "bfloat16", 128, "cudnn"),
        (device("gpu", "NVIDIA A100", compute_capability="8.0"), "float16", 64, "cudnn"),
        (device("gpu", "NVIDIA H100", compute_capability="9.0"), "float32", 128, "plain"),
        (device("gpu", "NVIDIA H100", compute_capability="9.0"), "bfloat16", 256, "plain"),
        (device("gpu", "NVIDIA H100", compute_capability="9.0"), "bfloat16", 60, "plain"),
        (device("gpu", "Tesla T4", compute_capability="7.5"), "bfloat16", 128, "plain"),
        (device("gpu", "AMD Instinct", compute_capability="gfx942"), "bfloat16", 128, "plain"),
        (device("cpu"), "bfloat16", 128, "blocks"),
    ],
)
def test_causal_attention(where, dtype, head_dim, backend):
    """The devices that a program is compiled for decide, not those of this machine."""
    mesh = SimpleNamespace(devices=np.array([[where]]))
    assert choose.attention_backend(mesh, dtype, head_dim) == backend


H100 = SimpleNamespace(platform="gpu", compute_capability="9.0")
T4 = SimpleNamespace(platform="gpu", compute_capability="7.5")
AMD = SimpleNamespace(platform="gpu", compute_capability="gfx942")


@pytest.mark.parametrize(
    ("where", "dtype", "head_dim", "expected"),
    [
        (H100, "bfloat16", 128, True),
        (H100, "float16", 64, True),
        (H100, "float32", 128, False),
        (H100, "bfloat16", 80, False),
        (H100, "bfloat16", 256, False),
        (T4, "float16", 128, False),
        (AMD, "bfloat16", 128, False),
        (SimpleNamespace(platform="tpu"), "bfloat16", 128, False),
    ],
)
def test_attention_over_a_cache(where, dtype, head_dim, expected):
    mesh = SimpleNamespace(devices=np.array([[where]]))
    chosen = choose.cache_attention(mesh, dtype, head_dim)
    assert chosen is (triton_decode.attend if expected else kv_cache.attend)


@pytest.mark.parametrize(("platform", "count"), [("cpu", 3), ("gpu", 1), ("tpu", 1)])
def test_storage_of_a_cache(monkeypatch, platform, count):
    """CPUs have several caches of one block, accelerators one cache."""
    monkeypatch.setattr(choose, "platform", lambda mesh: platform)
    assert len(choose.empty_cache(None, 3, 300, 2, 8, "float32")) == count
