"""The two kinds of discriminator and what they say of tokens, against dense formulas and single sequences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.data.packing import RowShape
from gadjax.distill.discriminator import update_discriminator
from gadjax.distill.forward import in_rows, of_tokens, sequence_scores, token_scores
from gadjax.distill.rows import PackedByHost, group_rows
from gadjax.distill.updates import baseline_logprobs
from tests.distill.conftest import B, N, T
from tests.distill.dense_oracle import dense_distribution

BETA = 0.5


def all_responses(tiny):
    """Tokens [B, 1 + N, T] and lengths [B, 1 + N], the teacher's first."""
    tokens = np.concatenate([tiny.batch["teacher"][:, None], tiny.samples.tokens], axis=1)
    return tokens, np.concatenate([tiny.batch["teacher_length"][:, None], tiny.samples.lengths], axis=1)


def dense_logprobs(params, tiny, temperature):
    """[B, 1 + N, T] log-probs of the tables of `Bigrams`, 0 after the end."""
    tokens, lengths = all_responses(tiny)
    found, _ = dense_distribution(params, tiny, tokens.reshape(-1, T), 1 + N, temperature)
    return jnp.where(np.arange(T) < lengths[..., None], found.reshape(B, 1 + N, T), 0.0)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("sft", [0.0, 0.3])
def test_a_likelihood_s_update_is_its_formula(likelihoods, keep_gradient, parts, sft):
    method = likelihoods.method(
        discriminator_kind="likelihood",
        discriminator_beta=BETA,
        discriminator_sft_coefficient=sft,
        discriminator_optimizer=keep_gradient,
        discriminator_micro_batches=parts,
    )
    state, (groups, weight) = likelihoods.state(method), likelihoods.groups(method)
    baseline = jax.jit(functools.partial(baseline_logprobs, method))(state.reference, groups)
    np.testing.assert_allclose(
        baseline, dense_logprobs(likelihoods.reference, likelihoods, method.sampling.temperature), rtol=1e-9, atol=1e-12
    )

    def formula(params):
        logprobs = dense_logprobs(params, likelihoods, 1.0)
        scores = BETA * jnp.sum(logprobs - baseline, axis=-1)
        loss = jnp.mean(jnp.log(1 + jnp.exp(scores[:, 1:] - scores[:, :1])))
        nll = -jnp.sum(logprobs[:, 0]) / np.sum(likelihoods.batch["teacher_length"])
        return loss + sft * nll, (scores, logprobs, nll)

    (_, (scores, logprobs, nll)), gradient = jax.value_and_grad(formula, has_aux=True)(
        jax.tree.map(jnp.array, likelihoods.params["discriminator"])
    )
    update = jax.jit(functools.partial(update_discriminator, method))
    new, judged, metrics = update(state.discriminator, groups, weight, baseline)
    np.testing.assert_allclose(judged.scores, scores, rtol=1e-9)
    np.testing.assert_allclose(judged.tokens, logprobs, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(judged.baseline, baseline)
    np.testing.assert_allclose(metrics["discriminator/nll"], nll, rtol=1e-9)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), new.opt_state, gradient)


def test_replayed_groups_are_not_judged(likelihoods):
    method = likelihoods.method(discriminator_kind="likelihood")
    state, (groups, weight) = likelihoods.state(method), likelihoods.groups(method)
    baseline = jax.jit(functools.partial(baseline_logprobs, method))(state.reference, groups)
    update = jax.jit(functools.partial(update_discriminator, method), static_argnames="fresh")
    _, every, _ = update(state.discriminator, groups, weight, baseline)
    _, judged, _ = update(state.discriminator, groups, weight, baseline, fresh=2)
    jax.tree.map(lambda fresh, all: np.testing.assert_array_equal(fresh, all[:2]), judged, every)


@pytest.mark.parametrize("share", [False, True])
def test_a_scalar_head_s_value_at_each_token(decoder, share):
    """In packed rows, against each prefix of each response alone: the score of a prefix is the value at its end."""
    method = decoder.method()
    lay_out = PackedByHost(RowShape(row_length=60, share=share))
    tokens, lengths = all_responses(decoder)
    rows = group_rows(method, decoder.batch, decoder.samples.tokens, decoder.samples.lengths, lay_out)
    rows = jax.tree.map(lambda leaf: leaf[0], rows)
    params = jax.tree.map(jnp.array, decoder.params["discriminator"])
    values = jax.jit(lambda params: of_tokens(token_scores(method.discriminator, params, rows), rows, T))(params)
    values = np.asarray(values).reshape(B, 1 + N, T)
    score = jax.jit(lambda params, rows: sequence_scores(method.discriminator, params, rows))
    for b, n in ((0, 0), (0, 1), (1, 2), (2, 0), (3, 3)):
        prompt = decoder.batch["prompt"][b, : decoder.batch["prompt_length"][b]]
        prefixes = [tokens[b, n, : k + 1] for k in range(lengths[b, n])]
        alone = score(params, decoder.pack([prompt] * len(prefixes), prefixes)) if len(prefixes) < 3 else None
        if alone is None:  # a row holds few sequences
            alone = np.concatenate([score(params, decoder.pack([prompt], [prefix])) for prefix in prefixes])
        np.testing.assert_allclose(values[b, n, : lengths[b, n]], alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(values[b, n, lengths[b, n] :], 0.0)


@pytest.mark.parametrize("credit", ["sequence", "token"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_score_is_the_last_value_or_the_mean(decoder, credit, pooling):
    method = decoder.method(credit=credit, discriminator_pooling=pooling, discriminator_micro_batches=2)
    state, groups = decoder.state(method), decoder.groups(method)
    _, judged, _ = jax.jit(functools.partial(update_discriminator, method, train=False))(state.discriminator, *groups)
    values = decoder.method(credit="token")
    _, found, _ = jax.jit(functools.partial(update_discriminator, values, train=False))(
        state.discriminator, *decoder.groups(values)
    )
    _, lengths = all_responses(decoder)
    tokens = np.asarray(found.tokens)
    last = np.take_along_axis(tokens, lengths[..., None] - 1, axis=-1)[..., 0]
    expected = tokens.sum(-1) / lengths if pooling == "mean" else last
    np.testing.assert_allclose(judged.scores, expected, rtol=1e-5, atol=1e-6)
    assert (judged.tokens is None) == (credit == "sequence")


def test_tokens_go_out_of_rows_and_back(decoder):
    rows, _ = decoder.policy_rows(decoder.method())
    rows = jax.tree.map(lambda leaf: leaf[0, 0], rows)
    values = np.random.default_rng(0).normal(size=rows.owner.shape)
    dense = of_tokens(jnp.array(values), rows, T)
    assert dense.shape == (B * N, T)
    np.testing.assert_allclose(in_rows(dense, rows), np.where(rows.mask, values, 0.0), rtol=1e-6)
