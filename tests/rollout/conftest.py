"""A tiny model whose every parameter is random, and ragged prompts with poisoned padding."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model

VOCAB = 23


@pytest.fixture(scope="module")
def model() -> Model:
    """A model with grouped heads, biases and query-key norms."""
    return Model(
        ModelConfig(
            architecture="Qwen3ForCausalLM",
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=6,
            qkv_bias=True,
            qk_norm=True,
        )
    )


@pytest.fixture(scope="module")
def params(model: Model) -> Any:
    """Random parameters, large enough for distributions far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.6 * rng.normal(size=leaf.shape)).astype(np.float32), model.abstract_params())


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    """Five prompts of different lengths."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCAB, length).astype(np.int32) for length in (5, 1, 9, 3, 7)]


@pytest.fixture(scope="module")
def padded(prompts: list[np.ndarray]):
    """Prompts [B, width], random ids in the padding, and their lengths [B]."""

    def pad(width: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.random.default_rng(seed).integers(0, VOCAB, (len(prompts), width)).astype(np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        return tokens, np.array([len(prompt) for prompt in prompts], np.int32)

    return pad


@pytest.fixture(scope="module")
def queue_of():
    """Makes [count, 9] prompts of random lengths, and their lengths: more prompts than slots."""

    def make(count, seed=3):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 23, (count, 9)).astype(np.int32), rng.integers(1, 10, count).astype(np.int32)

    return make
