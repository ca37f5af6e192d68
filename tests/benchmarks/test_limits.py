"""Counts of the least work."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.harness import models
from benchmarks.harness.limits import forward_flops, matrices, update_flops
from gadjax.kernels import choose
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model
from gadjax.planning.flops import count_flops

CONFIG = ModelConfig.from_hf(models.TINY, "tiny")


def test_matrices_are_all_weights_but_norms_and_the_table():
    norms = (2 * CONFIG.num_layers + 1) * CONFIG.hidden_size
    assert CONFIG.tie_embeddings
    assert sum(found.size for found in matrices(CONFIG)) == Model(CONFIG).num_params() - norms


@pytest.mark.parametrize("length", [8, 24])
def test_forward_pass_against_the_traced_program(monkeypatch, length):
    """Plain attention computes the whole square of logits; causal attention needs half."""
    monkeypatch.setattr(choose, "attention_backend", lambda *_: "plain")
    model = Model(CONFIG)
    tokens = jnp.zeros((1, length), jnp.int32)
    traced = jax.jit(model.logits).trace(model.abstract_params(), tokens, tokens, tokens)
    per_pair = 4 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim
    unneeded = per_pair * (length**2 - length * (length + 1) // 2)
    assert forward_flops(CONFIG, [length], length) == count_flops(traced.jaxpr, 1) - unneeded


def test_updates():
    """Two prompts of 5 and 7 tokens, two samples each; by hand."""
    discriminator = forward_flops(CONFIG, [8, 9, 10, 11, 9, 12], 0)  # samples, then the teacher's
    generator = forward_flops(CONFIG, [8, 9, 10, 11], 3 + 4 + 3 + 4)
    assert update_flops(CONFIG, [5, 7], [4, 5], [3, 4, 3, 4]) == 3 * discriminator + 4 * generator
