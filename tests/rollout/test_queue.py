"""The schedule of a rollout: slots, places and admissions change no sample, and keep the device busy."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.planning.hlo import HloProgram
from gadjax.rollout.draw import Sampling
from gadjax.rollout.sampler import ADMISSIONS, TOKEN_STEPS, rollout, row_keys, sizes_of

pytestmark = pytest.mark.usefixtures("quick_compile")

T, PAD = 8, 22
SAMPLED = Sampling(max_response_length=T, eos_ids=(3, 11, 17), pad_id=PAD, temperature=0.7)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def run_jitted(model, params, tokens, lengths, keys, count, sampling, slots):
    return rollout(model, params, tokens, lengths, keys, count, sampling, slots)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("slots", [1, 2, 5, 16, 1000])
def test_the_number_of_slots_changes_no_sample(model, params, queue_of, slots, count):
    tokens, lengths = queue_of(20)
    keys = row_keys(jax.random.key(0), jnp.arange(20))
    whole, all_steps = run_jitted(model, params, tokens, lengths, keys, count, SAMPLED, 0)
    some, steps = run_jitted(model, params, tokens, lengths, keys, count, SAMPLED, slots)
    np.testing.assert_array_equal(some.tokens, whole.tokens)
    np.testing.assert_array_equal(some.lengths, whole.lengths)
    np.testing.assert_array_equal(some.ended, whole.ended)
    np.testing.assert_allclose(some.logprobs, whole.logprobs, atol=1e-5)
    assert all_steps == whole.lengths.max()
    total, used = whole.lengths.sum(), min(slots, 20 * count)
    assert total / used <= steps <= total / used + 2 * T


@pytest.mark.parametrize("count", [1, 8])
def test_skewed_lengths_keep_the_slots_busy(model, params, queue_of, count):
    """Most samples end early and some are cut at the limit. The steps are near those of slots that are never idle."""
    prompts, slots, limit = 256 // count, 16, 18
    tokens, lengths = queue_of(prompts)
    keys = row_keys(jax.random.key(2), jnp.arange(prompts))
    sampling = Sampling(limit, tuple(range(8)), PAD, temperature=1.0)
    samples, steps = run_jitted(model, params, tokens, lengths, keys, count, sampling, slots)
    sampled = np.asarray(samples.lengths).reshape(-1)
    assert np.median(sampled) <= limit / 6 and sampled.max() == limit
    in_waves = sum(sampled[i : i + slots].max() for i in range(0, len(sampled), slots))
    ideal = sampled.sum() / slots
    assert ideal <= steps < 1.1 * ideal + limit
    assert steps < 0.6 * in_waves


def test_prompts_of_no_length_are_not_sampled(model, params, queue_of):
    tokens, lengths = queue_of(7)
    keys = row_keys(jax.random.key(0), jnp.arange(7))
    whole, _ = run_jitted(model, params, tokens[:5], lengths[:5], keys[:5], 2, SAMPLED, 3)
    lengths[5:] = 0
    padded, steps = run_jitted(model, params, tokens, lengths, keys, 2, SAMPLED, 3)
    np.testing.assert_array_equal(padded.tokens[:5], whole.tokens)
    assert (np.asarray(padded.tokens[5:]) == PAD).all() and (np.asarray(padded.lengths[5:]) == 0).all()
    none, steps = run_jitted(model, params, tokens, np.zeros_like(lengths), keys, 2, SAMPLED, 3)
    assert steps == 0 and (np.asarray(none.tokens) == PAD).all()


def test_calls_of_one_shape_compile_once(model, params, queue_of):
    jitted = jax.jit(rollout, static_argnums=(0, 5, 6, 7))
    for seed in range(3):
        tokens, lengths = queue_of(6, seed)
        keys = row_keys(jax.random.key(seed), jnp.arange(6))
        jitted(model, params, tokens, lengths, keys, 2, SAMPLED, 4)
    assert jitted._cache_size() == 1


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
    """A sample takes memory for its tokens and log-probs, a slot for its cache, a place for its prompt's cache."""
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


def test_prompts_are_read_while_others_are_answered(model, params, queue_of):
    """There are fewer places than prompts, and an admission reads several. All prompts are answered."""
    tokens, lengths = queue_of(30)
    keys = row_keys(jax.random.key(0), jnp.arange(30))
    sizes = sizes_of(None, 30, 9, 3, 6)
    assert (sizes.prompts, sizes.slots, sizes.places, sizes.chunk) == (30, 6, 6, 2)
    samples, _ = run_jitted(model, params, tokens, lengths, keys, 3, SAMPLED, 6)
    assert (np.asarray(samples.lengths) > 0).all()
