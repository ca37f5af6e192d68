"""The sampling loop's compiled program: what is in its loops, and its memory."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from gadjax.planning.hlo import HloProgram
from gadjax.rollout.sampler import ADMISSIONS, TOKEN_STEPS, row_keys
from tests.rollout.test_sampler import SAMPLED, T, run_jitted

pytestmark = pytest.mark.usefixtures("quick_compile")


def compiled(model, params, *, prompts, slots, count=1, width=9, limit=T):
    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.int32)  # noqa: E731
    keys = jax.eval_shape(lambda: row_keys(jax.random.key(0), jnp.arange(prompts)))
    sampling = dataclasses.replace(SAMPLED, max_response_length=limit)
    return run_jitted.lower(
        model, params, shape(prompts, width), shape(prompts), keys, count, sampling, slots
    ).compile()


def test_slots_are_refilled_inside_of_the_compiled_loop(model, params):
    """One program for all prompts; the schedule's operations are in the body of the token loop, with the products."""
    text = compiled(model, params, prompts=40, slots=4, count=2).as_text()
    origins = set(re.findall(r'op_name="([^"]*)"', text))
    steps = f"{ADMISSIONS}/while/body/{TOKEN_STEPS}/while/body/"
    # `queue.refill` counts the idle slots; the sums of `draw` are in a scope of their own.
    assert any(f"{steps}jit(cumsum)" in origin for origin in origins)
    assert any(steps in origin and origin.endswith("dot_general") for origin in origins)
    loops = {loops for _, loops in HloProgram(text).repeats.values()}
    assert (ADMISSIONS, TOKEN_STEPS) in loops
    assert not [origin for origin in origins if "callback" in origin]


def test_memory_follows_the_slots_and_not_the_prompts(model, params):
    """Rows beyond the slots take their tokens and log-probs; a slot takes its caches; samples share their prompt's."""
    config = model.config
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4  # bytes

    def temporary(**sizes):
        return compiled(model, params, **sizes).memory_analysis().temp_size_in_bytes

    limit, width = 512, 1024
    few = temporary(prompts=64, slots=8, count=4, limit=limit, width=width)
    rows = temporary(prompts=192, slots=8, count=4, limit=limit, width=width)
    assert rows - few < 1.5 * 128 * 4 * limit * 8  # of 512 more samples; their caches would take 24 times as much
    slots = temporary(prompts=64, slots=24, count=4, limit=limit, width=width)
    places = 2 * (24 - 8) // 4
    caches = position * (16 * limit + places * width)
    assert caches < slots - few < 1.5 * caches
    assert caches < 0.7 * position * 16 * (limit + width)  # what each slot's own copy of its prompt would take
