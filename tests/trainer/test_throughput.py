"""Operations counted by formula against those of the traced programs; tokens and padding against loops."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.data.packing import pack
from gadjax.kernels import choose
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model
from gadjax.planning.flops import count_flops
from gadjax.rollout.sampler import Samples
from gadjax.trainer import throughput

CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    qkv_bias=True,
)
PROMPTS, ANSWERS = (3, 3, 5), (4, 2, 6)


def rows(share: bool = False):
    prompts, answers = ([np.full(n, i, np.int32) for i, n in enumerate(lengths)] for lengths in (PROMPTS, ANSWERS))
    return pack(prompts, answers, row_length=16, group=3, share=share)


def of_one(length: int, predicted: int) -> float:
    """Operations of a sequence alone, every token seeing all before it and itself."""
    return CONFIG.forward_flops(length, length * (length + 1) // 2, predicted)


def test_forward_flops_are_those_of_the_program(monkeypatch):
    """Of a dense program, in which every token meets every other and has its logits."""
    monkeypatch.setattr(choose, "attention_backend", lambda *_: "plain")
    model = Model(CONFIG)
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    traced = jax.jit(model.logits).trace(model.abstract_params(), tokens, tokens, tokens)
    assert CONFIG.forward_flops(16, 2 * 8 * 8, 16) == count_flops(traced.jaxpr, 1)


def test_rows_count_what_they_hold():
    work = throughput.of_rows(Model(CONFIG), rows(), throughput.TRAINING)
    alone = sum(of_one(p + a, a) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    assert work.flops == pytest.approx(3 * alone)
    assert (work.tokens, work.places) == (sum(PROMPTS) + sum(ANSWERS), rows().tokens.size)
    scored = throughput.of_rows(Model(CONFIG, "score"), rows(), throughput.SCORING)
    assert scored.flops == pytest.approx(alone - 2 * 97 * 24 * sum(ANSWERS))


def test_a_shared_prompt_counts_once():
    """Its tokens, and what they see; each answer's tokens see it."""
    prompt, answers = np.ones(3, np.int32), [np.ones(n, np.int32) for n in ANSWERS]
    shared = pack([prompt] * 3, answers, row_length=16, group=3, share=True)
    work = throughput.of_rows(Model(CONFIG), shared, throughput.SCORING)
    pairs = 6 + sum(sum(3 + t for t in range(1, n + 1)) for n in ANSWERS)
    assert work.tokens == 3 + 12
    assert work.flops == pytest.approx(CONFIG.forward_flops(15, pairs, 12))


def test_a_rollout_reads_every_token_but_the_last():
    lengths = np.array([[1, 4], [3, 2]])
    samples = Samples(np.zeros((2, 2, 5)), lengths, np.zeros((2, 2, 5)), lengths < 5)
    work = throughput.of_rollout(Model(CONFIG), np.array([3, 5], np.int32), samples)
    pairs = 6 + 15 + sum(sum(p + t for t in range(1, n)) for p, of in ((3, (1, 4)), (5, (3, 2))) for n in of)
    assert work.tokens == 3 + 5 + 6
    assert work.flops == pytest.approx(CONFIG.forward_flops(14, pairs, 10))


def test_windows_leave_pairs_out():
    """A rollout and packed rows count a layer's own pairs: the last tokens that each token sees."""
    config = dataclasses.replace(CONFIG, sliding_window=3, layer_slides=(True, *[False] * (CONFIG.num_layers - 1)))
    near = lambda length: sum(min(t, 3) for t in range(1, length + 1))  # noqa: E731
    lengths = np.array([[1, 4], [3, 2]])
    samples = Samples(np.zeros((2, 2, 5)), lengths, np.zeros((2, 2, 5)), lengths < 5)
    work = throughput.of_rollout(Model(config), np.array([2, 5], np.int32), samples)
    ends = [(p, p + n - 1) for p, of in ((2, (1, 4)), (5, (3, 2))) for n in of]
    full = lambda length: length * (length + 1) // 2  # noqa: E731
    pairs = [seen(2) + seen(5) + sum(seen(end) - seen(p) for p, end in ends) for seen in (full, near)]
    assert work.flops == pytest.approx(config.forward_flops(13, pairs[0], 10, pairs[1]))
    assert pairs[1] < pairs[0]
    alone = [p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    pairs = [sum(map(seen, alone)) for seen in (full, near)]
    work = throughput.of_rows(Model(config), rows(), throughput.SCORING)
    assert work.flops == pytest.approx(config.forward_flops(sum(alone), pairs[0], sum(ANSWERS), pairs[1]))


def test_figures_of_a_step():
    """On two chips whose peak is known, and on CPUs, of which it is not."""
    work = throughput.Work(flops=4e14, tokens=90, places=100)
    chips = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")] * 2
    meter = throughput.Meter(chips)
    meter.rollout(dataclasses.replace(work, flops=1e14))
    meter.update(work)
    meter.update(dataclasses.replace(work, flops=0, tokens=60))
    figures = meter.figures({"rollout": 2.0, "discriminator": 1.0, "generator": 2.0}, sampled=30)
    assert figures == pytest.approx(
        {
            "padding": 0.25,
            "speed/sampled_tokens_per_second": 15.0,
            "speed/trained_tokens_per_second": 50.0,
            "speed/model_tflops_per_device": 50.0,
            "speed/mfu": 50.0 / 989,
        }
    )
    meter.update(dataclasses.replace(work, places=90))
    assert meter.figures({"generator": 1.0}, 0)["padding"] == 0, "the step before is forgotten"
    on_cpu = throughput.Meter(jax.devices()[:1])
    on_cpu.update(work)
    assert "speed/mfu" not in on_cpu.figures({"generator": 1.0}, sampled=30)


def test_compiling_is_timed_and_running_is_not():
    double = jax.jit(lambda x: 2 * x + 3)
    before = throughput.compile_seconds()
    double(jnp.zeros(7)).block_until_ready()
    compiled = throughput.compile_seconds()
    assert compiled > before
    double(jnp.zeros(7)).block_until_ready()
    assert throughput.compile_seconds() == compiled
