"""The sampling loop against a naive one: a full forward pass for each token of one sequence at a time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.rollout import sampler
from gadjax.rollout.sampler import Sampling, rollout, row_keys, sample_token

pytestmark = pytest.mark.usefixtures("quick_compile")

N, T = 3, 8
EOS = (3, 11, 17)
PAD = 22
SAMPLED = Sampling(max_response_length=T, eos_ids=EOS, pad_id=PAD, temperature=0.7)
GREEDY = Sampling(max_response_length=T, eos_ids=EOS, pad_id=PAD, temperature=0)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def jitted(model, params, tokens, lengths, keys, count, sampling):
    return rollout(model, params, tokens, lengths, keys, count, sampling)


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
            noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape)
            token = int(jnp.argmax(logits + noise))
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


@pytest.mark.parametrize(("eos", "calls"), [(tuple(range(23)), 1), ((), T), (EOS, None)])
def test_stops_when_all_rows_have_ended(model, params, padded, monkeypatch, eos, calls):
    counted = []

    def counting(logits, keys, sampling):
        jax.debug.callback(lambda: counted.append(1))
        return sample_token(logits, keys, sampling)

    monkeypatch.setattr(sampler, "sample_token", counting)
    sampling = Sampling(T, eos, PAD, temperature=0.7)
    tokens, lengths = padded(9)
    keys = row_keys(jax.random.key(5), jnp.arange(2))
    run = jax.jit(lambda params: rollout(model, params, tokens[:2], lengths[:2], keys, 1, sampling))
    samples = jax.block_until_ready(run(params))
    jax.effects_barrier()
    assert len(counted) == int(samples.lengths.max())
    if calls is not None:
        assert len(counted) == calls


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
    """Trap 5 of the algorithm page, through the packed rows that the trainer uses."""
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


LOGITS = np.log(np.array([0.4, 0.25, 0.2, 0.1, 0.05], np.float32))


def many(sampling, count=20_000, logits=LOGITS):
    """`count` draws from the same logits."""
    keys = jax.random.split(jax.random.key(3), (1, count))
    token, logprob = jax.jit(sample_token, static_argnums=2)(jnp.tile(logits, (1, count, 1)), keys, sampling)
    return np.asarray(token[0]), np.asarray(logprob[0])


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, 5),
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 5),
        ({"top_p": 0.5}, 2),
        ({"top_p": 0.66}, 3),
        ({"top_p": 0.05}, 1),
        ({"top_p": 0.0}, 1),
        ({"top_k": 3, "top_p": 0.5}, 2),  # the nucleus is of what top-k left: 0.4 / 0.85 and 0.25 / 0.85
        ({"top_k": 3, "top_p": 0.8}, 3),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_truncation(settings, allowed, temperature):
    """Draws come from the allowed tokens, as often as their probabilities say; log-probs know no truncation."""
    settings = Sampling(1, (), temperature=temperature, **settings)
    logits = LOGITS * temperature  # so that the scaled distribution is always the same
    tokens, logprobs = many(settings, logits=logits)
    assert set(tokens) == set(range(allowed))
    expected = np.exp(LOGITS[:allowed]) / np.exp(LOGITS[:allowed]).sum()
    frequency = np.bincount(tokens, minlength=allowed) / len(tokens)
    np.testing.assert_allclose(frequency, expected, atol=5 * 0.5 / len(tokens) ** 0.5)
    np.testing.assert_allclose(logprobs, LOGITS[tokens], atol=1e-5)


def test_truncation_is_of_each_row(model, params, padded):
    """In the loop itself: every token is among its row's two likeliest."""
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


def test_greedy_needs_no_keys():
    tokens, logprobs = many(Sampling(1, (), temperature=0), count=10)
    assert (tokens == 0).all()
    np.testing.assert_allclose(logprobs, LOGITS[0], atol=1e-6)
