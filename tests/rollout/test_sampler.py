"""The sampling loop against a naive one: a full forward pass for each token of one sequence at a time."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models import layouts
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model
from gadjax.parallel import mesh as meshes
from gadjax.rollout.draw import Sampling, sample_token, uniforms
from gadjax.rollout.sampler import rollout, row_keys

pytestmark = pytest.mark.usefixtures("quick_compile")

N, T = 3, 8
EOS = (3, 11, 17)
PAD = 22
# Heads and vocabulary that eight devices can split, with fewer key-value heads than those.
WIDE = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=4,
    qkv_bias=True,
    tie_embeddings=True,
)
SAMPLED = Sampling(max_response_length=T, eos_ids=EOS, pad_id=PAD, temperature=0.7)
GREEDY = Sampling(max_response_length=T, eos_ids=EOS, pad_id=PAD, temperature=0)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def jitted(model, params, tokens, lengths, keys, count, sampling):
    return rollout(model, params, tokens, lengths, keys, count, sampling)[0]


def draw(model, params, padded, sampling, *, seed=0, count=N, width=9, rows=None):
    """Samples as numpy; `rows` chooses and orders prompts, which keep their keys."""
    tokens, lengths = padded(width)
    rows = np.arange(len(tokens)) if rows is None else np.array(rows)
    keys = row_keys(jax.random.key(seed), jnp.array(rows))
    samples = jitted(model, params, tokens[rows], lengths[rows], keys, count, sampling)
    return jax.tree.map(np.asarray, samples)


@functools.partial(jax.jit, static_argnums=0)
def next_logits(model, params, tokens, length):
    """Logits after the first `length` tokens [1, W], without any cache."""
    positions = jnp.arange(tokens.shape[1])[None]
    logits = model.logits(params, tokens, positions, (positions < length).astype(jnp.int32))
    return logits[0, length - 1]


@functools.partial(jax.jit, static_argnums=0)
def whole_logits(model, params, tokens):
    """Logits [W, V] of one sequence [1, W]."""
    return model.logits(params, tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))[0]


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.6 * rng.normal(size=leaf.shape)).astype(np.float32), model.abstract_params())


def naive(model, params, prompt, key, number, sampling):
    """Tokens and log-probs of one response."""
    key = jax.random.fold_in(key, number)
    sequence = list(prompt)
    tokens, logprobs = [], []
    for step in range(sampling.max_response_length):
        buffer = np.zeros((1, 9 + T), np.int32)
        buffer[0, : len(sequence)] = sequence
        logits = next_logits(model, params, buffer, len(sequence))
        if sampling.temperature:
            logits = logits / sampling.temperature
            high, low = (np.float64(part[0]) for part in uniforms(jax.random.fold_in(key, step)[None]))
            probability = np.asarray(jax.nn.softmax(logits), np.float64)
            token = int(np.searchsorted(np.cumsum(probability) / probability.sum(), high + low, side="right"))
        else:
            token = int(jnp.argmax(logits))
        tokens.append(token)
        logprobs.append(float(jax.nn.log_softmax(logits)[token]))
        sequence.append(token)
        if token in sampling.eos_ids:
            break
    return tokens, logprobs


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_equals_the_naive_loop(model, params, prompts, padded, sampling):
    samples = draw(model, params, padded, sampling)
    keys = row_keys(jax.random.key(0), jnp.arange(len(prompts)))
    count = N if sampling.temperature else 1
    for b, prompt in enumerate(prompts):
        for n in range(count):
            tokens, logprobs = naive(model, params, prompt, keys[b], n, sampling)
            length = len(tokens)
            assert samples.lengths[b, n] == length
            assert samples.tokens[b, n, :length].tolist() == tokens
            np.testing.assert_allclose(samples.logprobs[b, n, :length], logprobs, atol=1e-5)
            assert samples.ended[b, n] == (tokens[-1] in EOS)
    if not sampling.temperature:
        assert (samples.tokens == samples.tokens[:, :1]).all()


def test_rows_stop_alone_at_any_end(model, params, padded):
    samples = draw(model, params, padded, SAMPLED, count=40)
    ends = {int(t) for t in samples.tokens[np.arange(T) == samples.lengths[..., None] - 1][samples.ended.reshape(-1)]}
    assert ends == set(EOS)
    assert len(np.unique(samples.lengths)) > 4
    steps = np.arange(T)
    inside = steps < samples.lengths[..., None]
    assert not np.isin(samples.tokens, EOS)[steps < samples.lengths[..., None] - 1].any()
    assert (samples.tokens[~inside] == PAD).all()
    assert (samples.logprobs[~inside] == 0).all()
    assert (samples.logprobs[inside] < 0).all()


def test_ended_at_the_limit_is_not_cut(model, params, padded):
    samples = draw(model, params, padded, SAMPLED, count=40)
    at_limit = samples.lengths == T
    assert (samples.ended | at_limit).all()
    last = np.isin(samples.tokens[..., -1], EOS)
    assert (samples.ended[at_limit] == last[at_limit]).all()
    assert 0 < last[at_limit].sum() < at_limit.sum()  # both kinds are there


@pytest.mark.parametrize(("eos", "expected"), [(tuple(range(23)), 1), ((), T), (EOS, None)])
def test_stops_when_all_rows_have_ended(model, params, padded, eos, expected):
    tokens, lengths = padded(9)
    keys = row_keys(jax.random.key(5), jnp.arange(2))
    samples, steps = jax.jit(functools.partial(rollout, model, num_samples=1, sampling=Sampling(T, eos, PAD, 0.7)))(
        params, tokens[:2], lengths[:2], keys
    )
    assert steps == samples.lengths.max()
    assert expected is None or steps == expected


def test_one_token_at_most(model, params, padded):
    samples = draw(model, params, padded, Sampling(1, EOS, PAD))
    assert samples.tokens.shape == (5, N, 1)
    assert (samples.lengths == 1).all()
    assert (samples.ended == np.isin(samples.tokens[..., 0], EOS)).all()


def test_reproducible_from_the_key(model, params, padded):
    first, again, other = (draw(model, params, padded, SAMPLED, seed=seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.tokens != other.tokens).any(axis=(1, 2)).all()


def test_samples_of_a_prompt_differ(model, params, padded):
    tokens = draw(model, params, padded, SAMPLED, count=4).tokens
    for group in tokens:
        assert len({tuple(row) for row in group.tolist()}) > 2


def test_more_samples_do_not_change_the_first(model, params, padded):
    few, many = (draw(model, params, padded, SAMPLED, count=count) for count in (N, N + 1))
    np.testing.assert_array_equal(few.tokens, many.tokens[:, :N])


@pytest.mark.parametrize("change", [{"rows": [3, 0, 4, 1, 2]}, {"rows": [1, 1, 4, 1, 1]}, {"width": 16}])
def test_independent_of_place_and_padding(model, params, padded, change):
    whole = draw(model, params, padded, SAMPLED)
    other = draw(model, params, padded, SAMPLED, **change)
    rows = change.get("rows", range(5))
    np.testing.assert_array_equal(other.tokens, whole.tokens[list(rows)])
    np.testing.assert_allclose(other.logprobs, whole.logprobs[list(rows)], atol=1e-5)


def test_log_probs_are_those_of_training(model, params, prompts, padded):
    """Trap 5 (`docs/algorithm.md`, section 5), through the packed rows that the trainer uses."""
    from gadjax.data.packing import pack
    from gadjax.distill.forward import response_logprobs

    samples = draw(model, params, padded, SAMPLED)
    responses = [samples.tokens[b, n, : samples.lengths[b, n]] for b in range(5) for n in range(N)]
    rows = pack([prompt for prompt in prompts for _ in range(N)], responses, row_length=40)
    rows = jax.tree.map(lambda leaf: leaf[0], rows)
    logprobs, _ = response_logprobs(model, params, rows, temperature=0.7, chunk=4)
    recorded = samples.logprobs.reshape(-1, T)
    for (r, k), held in np.ndenumerate(rows.mask):
        if held:
            assert logprobs[r, k] == pytest.approx(recorded[rows.owner[r, k], rows.step[r, k]], abs=1e-4)


def test_truncation_is_of_each_row(model, params, padded):
    """With top_k = 2, every token that the loop draws is among its row's two likeliest."""
    samples = draw(model, params, padded, Sampling(T, (), PAD, temperature=0.7, top_k=2), count=2)
    tokens, lengths = padded(9)
    for b in range(5):
        sequence = [*tokens[b, : lengths[b]], *samples.tokens[b, 1]]
        for step in range(T):
            buffer = np.zeros((1, 9 + T), np.int32)
            known = lengths[b] + step
            buffer[0, :known] = sequence[:known]
            logits = np.asarray(next_logits(model, params, buffer, known))
            token = samples.tokens[b, 1, step]
            assert token in np.argsort(logits)[-2:]
            full = np.asarray(jax.nn.log_softmax(logits / 0.7))[token]
            assert samples.logprobs[b, 1, step] == pytest.approx(full, abs=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def run_jitted(model, params, tokens, lengths, keys, count, sampling, slots):
    return rollout(model, params, tokens, lengths, keys, count, sampling, slots)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8), (1, 4, 2)])
@pytest.mark.parametrize("slots", [0, 16])
def test_the_mesh_changes_no_sample(queue_of, sizes, slots):
    model = Model(WIDE)
    params = random_params(model)
    tokens, lengths = queue_of(24)
    keys = row_keys(jax.random.key(0), jnp.arange(24))
    whole, _ = run_jitted(model, params, tokens, lengths, keys, 2, SAMPLED, slots)
    mesh = meshes.make_mesh(*sizes)
    spread = dataclasses.replace(model, mesh=mesh)
    params = jax.device_put(params, layouts.param_shardings(spread, mesh, meshes.DECODING_RULES))
    placed = meshes.place((tokens, lengths), meshes.rows(mesh))
    split, _ = run_jitted(spread, params, *placed, keys, 2, SAMPLED, slots)
    np.testing.assert_array_equal(split.tokens, whole.tokens)
    np.testing.assert_array_equal(split.lengths, whole.lengths)
    np.testing.assert_array_equal(split.ended, whole.ended)
    np.testing.assert_allclose(split.logprobs, whole.logprobs, atol=1e-5)


def test_responses_of_several_blocks(model, params, queue_of):
    """Prompts and responses longer than a block of a cache, against the naive loop."""
    rng = np.random.default_rng(5)
    lengths = np.array([290, 1, 150, 129], np.int32)
    tokens = rng.integers(0, 23, (4, 300)).astype(np.int32)
    keys = row_keys(jax.random.key(4), jnp.arange(4))
    sampling = Sampling(270, (), PAD, temperature=0.7)
    samples, steps = run_jitted(model, params, tokens, lengths, keys, 1, sampling, 2)
    assert steps == 2 * 270
    for b in range(4):
        response = np.asarray(samples.tokens[b, 0])
        sequence = np.concatenate([tokens[b, : lengths[b]], response])[None]
        logits = np.asarray(whole_logits(model, params, np.pad(sequence, ((0, 0), (0, 570 - sequence.shape[1])))))
        logits = logits[lengths[b] - 1 : lengths[b] + 269] / 0.7
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        steps = np.arange(270)
        np.testing.assert_allclose(samples.logprobs[b, 0], logprobs[steps, response], atol=1e-4)
        drawn = jax.vmap(lambda s, key=keys[b]: jax.random.fold_in(jax.random.fold_in(key, 0), s))(steps)
        again, _ = sample_token(jnp.asarray(logits), drawn, Sampling(1, ()))
        np.testing.assert_array_equal(again, response)
