"""Draws, compared with their distribution in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.parallel import mesh as meshes
from gadjax.rollout.draw import Sampling, sample_token, uniforms

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.quick]

LOGITS = np.log(np.array([0.4, 0.25, 0.2, 0.1, 0.05], np.float32))


def many(sampling, count=20_000, logits=LOGITS):
    """`count` draws from the same logits."""
    keys = jax.random.split(jax.random.key(3), count)
    token, logprob = jax.jit(sample_token, static_argnums=2)(jnp.tile(logits, (count, 1)), keys, sampling)
    return np.asarray(token), np.asarray(logprob)


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
    """Allowed tokens are drawn as often as their probabilities say. Log-probs are of the untruncated distribution."""
    settings = Sampling(1, (), temperature=temperature, **settings)
    logits = LOGITS * temperature  # so that the scaled distribution is always the same
    tokens, logprobs = many(settings, logits=logits)
    assert set(tokens) == set(range(allowed))
    expected = np.exp(LOGITS[:allowed]) / np.exp(LOGITS[:allowed]).sum()
    frequency = np.bincount(tokens, minlength=allowed) / len(tokens)
    np.testing.assert_allclose(frequency, expected, atol=5 * 0.5 / len(tokens) ** 0.5)
    np.testing.assert_allclose(logprobs, LOGITS[tokens], atol=1e-5)


def test_greedy_needs_no_keys():
    tokens, logprobs = many(Sampling(1, (), temperature=0), count=10)
    assert (tokens == 0).all()
    np.testing.assert_allclose(logprobs, LOGITS[0], atol=1e-6)


def wide(vocabulary, rows, seed=0):
    """Logits over a vocabulary of several blocks, the last not full: steep, with a long tail."""
    return np.random.default_rng(seed).normal(0, 3, (rows, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("vocabulary", [5, 256, 257, 1000])
def test_inverse_of_the_cumulative_distribution(vocabulary):
    """Each draw is the first token whose cumulative probability, in float64, exceeds its uniform number."""
    rows = 4000
    logits = wide(vocabulary, rows)
    keys = jax.random.split(jax.random.key(0), rows)
    tokens, logprobs = jax.jit(sample_token, static_argnums=2)(logits, keys, Sampling(1, ()))
    weights = np.exp(np.float64(logits) - logits.max(1, keepdims=True))
    ends = np.cumsum(weights, 1) / weights.sum(1, keepdims=True)
    uniform = np.sum([np.float64(part) for part in uniforms(keys)], axis=0)
    assert ((uniform >= 0) & (uniform < 1)).all()
    expected = (ends <= uniform[:, None]).sum(1)
    differ = np.flatnonzero(expected != tokens)
    near = np.abs(np.take_along_axis(ends, np.minimum(expected, tokens)[:, None], 1)[:, 0] - uniform)
    assert (near[differ] < 1e-6).all(), "only by rounding, at a boundary"
    assert len(differ) < 0.002 * rows
    exact = np.log(np.take_along_axis(weights, np.asarray(tokens)[:, None], 1)[:, 0] / weights.sum(1))
    np.testing.assert_allclose(logprobs, exact, atol=2e-5)


def test_64_bits_change_no_uniform_number():
    keys = jax.random.split(jax.random.key(0), 100)
    plain = uniforms(keys)
    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_array_equal, plain, uniforms(keys))


def test_frequencies_over_blocks():
    """Chi-square of draws from one distribution over 700 tokens, the rare ones together."""
    count = 200_000
    logits = wide(700, 1)
    keys = jax.random.split(jax.random.key(7), count)
    draw = jax.jit(lambda keys: sample_token(jnp.broadcast_to(logits, (len(keys), 700)), keys, Sampling(1, ()))[0])
    tokens = np.concatenate([np.asarray(draw(part)) for part in keys.reshape(10, -1)])
    probability = np.exp(np.float64(logits[0]) - logits.max())
    probability /= probability.sum()
    often = probability * count >= 20
    counts, expected = np.bincount(tokens, minlength=700), probability * count
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    freedom = len(observed) - 1
    assert freedom > 100
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_tokens_rarer_than_a_float32_step_are_drawn():
    """Every token of a block has a probability of 2e-8. With 24 random bits, a third of them would never be drawn."""
    vocabulary = 2**15
    logits = np.full(vocabulary, np.log(2e-8), np.float32)
    logits[0] = np.log(1 - 2e-8 * (vocabulary - 1))
    count = 4096
    keys = jax.random.split(jax.random.key(1), 20 * count).reshape(20, count)
    draw = jax.jit(lambda keys: sample_token(jnp.broadcast_to(logits, (count, vocabulary)), keys, Sampling(1, ()))[0])
    rare = np.concatenate([np.asarray(draw(part)) for part in keys])
    rare = rare[rare > 0]
    mean = 20 * count * 2e-8 * (vocabulary - 1)
    assert abs(len(rare) - mean) < 5 * mean**0.5
    assert len(np.unique(rare)) > 0.98 * len(rare)
    assert len(np.unique(rare % 3)) == 3 and len(np.unique(rare // 4096)) == 8


@pytest.mark.parametrize("sampling", [Sampling(1, ()), Sampling(1, (), top_k=7), Sampling(1, (), temperature=0.0)])
def test_a_split_vocabulary_changes_nothing(sampling):
    logits = wide(1000, 64)
    logits[:, 999] = logits[:, 3] = logits.max(1) + 1.0  # the likeliest twice, on different devices
    keys = jax.random.split(jax.random.key(2), 64)
    draw = jax.jit(sample_token, static_argnums=(2, 3))
    whole = draw(logits, keys, sampling)
    mesh = meshes.make_mesh(1, 2, 4)
    split = draw(*meshes.place((logits,), meshes.rows(mesh)), keys, sampling, mesh)
    np.testing.assert_array_equal(whole[0], split[0])
    np.testing.assert_allclose(whole[1], split[1], atol=1e-5)
    if not sampling.temperature:
        assert (np.asarray(whole[0]) == 3).all()


def test_never_a_token_that_is_out():
    """A token of probability 0 is never drawn, not even with the largest uniform number."""
    import gadjax.rollout.draw as module

    logits = wide(300, 8)
    kept = np.asarray(module.truncate(jnp.asarray(logits), 3, 1.0))
    highest = jnp.full(8, 1 - 2.0**-24), jnp.full(8, 2.0**-24 - 2.0**-48)
    token, _ = module._draw(jnp.asarray(logits), jnp.asarray(kept), *highest, ())
    assert np.isfinite(np.take_along_axis(kept, np.asarray(token)[:, None], 1)).all()
