"""The optimizer steps against their formulas on dense arrays, in float64 and to its rounding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gadjax.distill import updates
from gadjax.distill.discriminator import discriminator_metrics, update_discriminator
from gadjax.distill.state import apply_gradients
from tests.distill.dense_oracle import (
    dense_discriminator_loss,
    dense_distribution,
    dense_policy_loss,
    dense_scores,
    dense_supervised_loss,
)
from tests.distill.policy import update_against

RTOL = 1e-10
LR = 0.5


def assert_trees_close(measured, expected, rtol=RTOL, atol=1e-13):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), measured, expected)


def assert_trees_equal(measured, expected):
    jax.tree.map(np.testing.assert_array_equal, measured, expected)


def total_size(tree) -> float:
    return float(sum(np.sum(np.abs(leaf)) for leaf in jax.tree.leaves(tree)))


def policy_update(tiny, method, teacher=True):
    """One rollout's policy updates on the fabricated samples: the new state, metrics."""
    rows, sampled = tiny.policy_rows(method)
    teacher = tiny.teacher_rows(method) if teacher and method.sft_coefficient else None
    update = jax.jit(functools.partial(update_against, method))
    state = tiny.state(method)
    return update(state.generator, state.reference, rows, sampled, tiny.advantages, teacher)


EVERY_TERM = dict(kl_coefficient=0.3, entropy_coefficient=0.2, sft_coefficient=0.7, importance_cap=1.5)
POLICY = {
    "paper": {},
    "micro_batches": dict(generator_micro_batches=4),
    "off_policy": dict(ppo_epochs=2),
    "sequence_mean": dict(aggregation="sequence_mean", generator_micro_batches=4),
    "constant": dict(aggregation="constant", generator_micro_batches=4),
    "every_term": dict(generator_micro_batches=2, **EVERY_TERM),
    "every_term_off_policy": dict(ppo_epochs=2, clip=0.5, dual_clip=2.0, **EVERY_TERM),
}


@pytest.mark.parametrize("fields", POLICY.values(), ids=POLICY)
def test_policy_update_is_its_formula(bigrams, keep_gradient, fields):
    """Loss, gradient and norm, whatever the micro-batches, which hold unequal numbers of tokens.

    Where there are two epochs the optimizer stands still, so that both see the same.
    """
    method = bigrams.method(generator_optimizer=keep_gradient, **fields)
    formula = jax.jit(jax.value_and_grad(lambda params: dense_policy_loss(params, bigrams, method)))
    loss, gradient = formula(bigrams.params["generator"])
    state, metrics = policy_update(bigrams, method)
    assert total_size(gradient) > 1e-2
    np.testing.assert_allclose(metrics["generator/loss"], loss, rtol=RTOL)
    assert_trees_close(state.opt_state, gradient)
    np.testing.assert_allclose(metrics["generator/grad_norm"], optax.global_norm(gradient), rtol=RTOL)


def test_the_samples_leave_every_clip(bigrams):
    """The off-policy cases above mean what they say only if some tokens are beyond each bound, and some within."""
    tokens, sampled = (leaf.reshape(12, -1) for leaf in (bigrams.samples.tokens, bigrams.samples.logprobs))
    logprobs, _ = dense_distribution(bigrams.params["generator"], bigrams, tokens, 3, 0.8)
    held = np.arange(tokens.shape[1]) < bigrams.samples.lengths.reshape(-1, 1)
    ratio, positive = np.exp(logprobs - sampled), bigrams.advantages.reshape(-1, 1) > 0
    for where in (
        positive & (ratio > 1.5),
        positive & (ratio < 1.2),
        ~positive & (ratio < 0.5),
        ~positive & (ratio > 0.8) & (ratio < 2),
        ~positive & (ratio > 3),
    ):
        assert np.any(where & held)


def test_policy_metrics_are_token_means(bigrams, keep_gradient):
    method = bigrams.method(generator_optimizer=keep_gradient)
    tokens, sampled = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (bigrams.samples.tokens, bigrams.samples.logprobs))
    logprobs, entropy = dense_distribution(bigrams.params["generator"], bigrams, tokens, 3, 0.8)
    reference, _ = dense_distribution(bigrams.reference, bigrams, tokens, 3, 0.8)
    held = np.arange(tokens.shape[1]) < bigrams.samples.lengths.reshape(-1, 1)
    d = (reference - logprobs)[held]
    _, metrics = policy_update(bigrams, method)
    expected = {
        "generator/kl": np.mean(np.exp(d) - d - 1),
        "generator/entropy": np.mean(entropy[held]),
        "generator/sampler_gap": np.mean(np.abs((logprobs - sampled)[held])),
        "generator/clipped": 0.0,  # on the policy the ratio is 1, whatever the sampler recorded
    }
    assert_trees_close({name: metrics[name] for name in expected}, expected)


def test_clipped_is_the_share_of_tokens_without_a_gradient(bigrams, keep_gradient):
    """Off the policy, where the clip cuts by the sign of the advantage too. The optimizer stands still."""
    method = bigrams.method(generator_optimizer=keep_gradient, ppo_epochs=2)
    tokens, sampled = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (bigrams.samples.tokens, bigrams.samples.logprobs))
    logprobs, _ = dense_distribution(bigrams.params["generator"], bigrams, tokens, 3, 0.8)
    held = np.arange(tokens.shape[1]) < bigrams.samples.lengths.reshape(-1, 1)
    advantages = bigrams.advantages.reshape(-1, 1)

    @jax.grad
    def slopes(logprobs):
        ratio = jnp.exp(logprobs - sampled)
        loss = -jnp.minimum(advantages * ratio, advantages * jnp.clip(ratio, 1 - method.clip, 1 + method.clip))
        return jnp.sum(jnp.where(advantages < 0, jnp.minimum(loss, -advantages * method.dual_clip), loss))

    cut = (slopes(logprobs) == 0)[held]
    _, metrics = policy_update(bigrams, method)
    np.testing.assert_allclose(metrics["generator/clipped"], np.mean(cut), rtol=1e-6)
    outside = np.abs(np.exp(logprobs - sampled) - 1)[held] > method.clip
    assert 0 < np.mean(cut) < np.mean(outside), "a ratio beyond the clip is not enough"


def test_on_policy_gradient_is_reinforce(bigrams, keep_gradient):
    """Ratio exactly 1: the gradient of -A log p, whatever the sampler recorded; the loss is the mean of -A."""
    method = bigrams.method(generator_optimizer=keep_gradient, kl_coefficient=0.0)
    tokens, lengths = bigrams.samples.tokens.reshape(12, -1), bigrams.samples.lengths.reshape(-1)
    weight = (
        np.where(np.arange(tokens.shape[1]) < lengths[:, None], bigrams.advantages.reshape(-1, 1), 0) / lengths.sum()
    )

    def reinforce(params):
        logprobs, _ = dense_distribution(params, bigrams, tokens, 3, method.sampling.temperature)
        return -jnp.sum(weight * logprobs)

    state, metrics = policy_update(bigrams, method)
    assert_trees_close(state.opt_state, jax.jit(jax.grad(reinforce))(bigrams.params["generator"]))
    np.testing.assert_allclose(metrics["generator/loss"], -weight.sum(), rtol=RTOL)


def test_importance_weights_of_the_policy_s_own_samples_are_one(bigrams, keep_gradient):
    method = bigrams.method(generator_optimizer=keep_gradient)
    tokens = bigrams.samples.tokens.reshape(12, -1)
    own, _ = dense_distribution(bigrams.params["generator"], bigrams, tokens, 3, method.sampling.temperature)
    bigrams.samples = bigrams.samples.replace(logprobs=np.array(own).reshape(bigrams.samples.tokens.shape))
    plain, _ = policy_update(bigrams, method)
    weighted, metrics = policy_update(bigrams, bigrams.method(generator_optimizer=keep_gradient, importance_cap=1.5))
    assert_trees_close(weighted.opt_state, plain.opt_state)
    assert metrics["generator/sampler_gap"] < 1e-13
    halved, _ = policy_update(
        bigrams, bigrams.method(generator_optimizer=keep_gradient, importance_cap=0.5, kl_coefficient=0.0)
    )
    unweighted, _ = policy_update(bigrams, bigrams.method(generator_optimizer=keep_gradient, kl_coefficient=0.0))
    assert_trees_close(halved.opt_state, jax.tree.map(lambda leaf: leaf / 2, unweighted.opt_state))


def test_minibatches_and_epochs_are_updates_one_after_another(bigrams):
    """Two epochs over two minibatches: four steps, each from the parameters that the one before it left, each with the
    log-probs of sampling time as the old ones, and each with weights of its own minibatch."""
    optimizer = optax.sgd(LR)
    method = bigrams.method(generator_optimizer=optimizer, ppo_minibatches=2, ppo_epochs=2, generator_micro_batches=2)
    measured, metrics = policy_update(bigrams, method)

    state, found = bigrams.state(method).generator, []
    formula = jax.jit(jax.value_and_grad(lambda params, lengths: dense_policy_loss(params, bigrams, method, lengths)))
    for half in (slice(0, 6), slice(6, 12)) * 2:
        lengths = np.zeros(12, np.int32)
        lengths[half] = bigrams.samples.lengths.reshape(-1)[half]
        loss, gradient = formula(state.params, lengths)
        state, _ = apply_gradients(optimizer, state, gradient)
        found.append(loss)
    assert_trees_close(measured.params, state.params)
    np.testing.assert_allclose(metrics["generator/loss"], np.mean(found), rtol=RTOL)
    assert measured.step == 4


def test_the_micro_batches_hold_unequal_numbers_of_tokens(bigrams):
    """Else a mean of means would pass for the mean in the tests here."""
    for lengths in (bigrams.samples.lengths, bigrams.batch["teacher_length"]):
        assert len(set(lengths.reshape(4, -1).sum(axis=1).tolist())) == 4
        assert len(set(lengths.reshape(2, -1).sum(axis=1).tolist())) == 2


def test_supervised_update_is_its_formula_in_any_micro_batches(bigrams, keep_gradient):
    formula = jax.jit(jax.value_and_grad(lambda params: dense_supervised_loss(params, bigrams)))
    loss, gradient = formula(bigrams.params["generator"])
    _, entropy = dense_distribution(bigrams.params["generator"], bigrams, bigrams.batch["teacher"], 1, 1.0)
    held = np.arange(entropy.shape[1]) < bigrams.batch["teacher_length"][:, None]
    for parts in (1, 4):
        method = bigrams.method(generator_optimizer=keep_gradient, generator_micro_batches=parts)
        update = jax.jit(functools.partial(updates.update_supervised, method))
        state, metrics = update(bigrams.state(method).generator, bigrams.teacher_rows(method))
        assert_trees_close(state.opt_state, gradient)
        np.testing.assert_allclose(metrics["generator/loss"], loss, rtol=RTOL)
        np.testing.assert_allclose(metrics["generator/entropy"], np.mean(entropy[held]), rtol=RTOL)


# The discriminator.


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(bt_temperature=3.0, discriminator_micro_batches=4),
        dict(discriminator_loss="ce", discriminator_micro_batches=2),
    ],
    ids=["bt", "bt_temperature", "ce"],
)
def test_discriminator_update_is_its_formula(bigrams, keep_gradient, fields):
    method = bigrams.method(discriminator_optimizer=keep_gradient, **fields)
    formula = jax.jit(jax.value_and_grad(lambda params: dense_discriminator_loss(params, bigrams, method)))
    loss, gradient = formula(bigrams.params["discriminator"])
    update = jax.jit(functools.partial(update_discriminator, method))
    state, judged, metrics = update(bigrams.state(method).discriminator, *bigrams.groups(method))
    expected = np.array(dense_scores(bigrams.params["discriminator"], bigrams))
    assert_trees_close(judged.scores, expected)
    assert_trees_close(state.opt_state, gradient)
    teacher, student = expected[:, :1], expected[:, 1:]
    assert_trees_close(
        metrics,
        {
            "discriminator/loss": loss,
            "discriminator/grad_norm": optax.global_norm(gradient),
            "discriminator/skipped": 0,
            "discriminator/accuracy": np.mean(teacher > student, dtype=np.float32),
            "discriminator/margin": np.mean(teacher - student),
            "reward/mean": np.mean(student),
            "reward/std": np.std(student),
        },
    )
    assert 0 < metrics["discriminator/accuracy"] < 1


def test_scoring_without_training_leaves_the_discriminator(bigrams):
    method = bigrams.method(discriminator_micro_batches=2)
    state, inputs = bigrams.state(method).discriminator, bigrams.groups(method)
    update = functools.partial(update_discriminator, method)
    trained, scores, metrics = jax.jit(update)(state, *inputs)
    same, only_scores, only_metrics = jax.jit(functools.partial(update, train=False))(state, *inputs)
    assert_trees_equal(same, state)
    assert not np.array_equal(trained.params["embed"], state.params["embed"])
    assert_trees_close(only_scores, scores)
    assert metrics.keys() - only_metrics.keys() == {"discriminator/grad_norm", "discriminator/skipped"}
    assert_trees_close(only_metrics, {name: metrics[name] for name in only_metrics})


def test_several_updates_are_one_after_another_and_all_their_norms_count(bigrams):
    """Scores and metrics are of the parameters before the first; the gradient's norm is the mean over all."""
    method = bigrams.method(discriminator_optimizer=optax.sgd(LR), discriminator_micro_batches=2)
    state, inputs = bigrams.state(method).discriminator, bigrams.groups(method)
    update = lambda **fields: jax.jit(  # noqa: E731
        functools.partial(update_discriminator, dataclasses.replace(method, **fields))
    )
    measured, scores, metrics = update(updates_per_step=3)(state, *inputs)
    once, found = update(), []
    for _ in range(3):
        state, *rest = once(state, *inputs)
        found.append(rest)
    assert_trees_close(measured, state)
    assert_trees_close(scores, found[0][0])
    norms = [each["discriminator/grad_norm"] for _, each in found]
    assert np.ptp(norms) > 1e-3
    assert_trees_close(metrics, found[0][1] | {"discriminator/grad_norm": np.mean(norms)})


def test_a_later_update_that_is_not_finite_leaves_its_trace(bigrams):
    """The first of two updates throws the parameters far away; the gradient of the second is not finite."""
    method = bigrams.method(discriminator_optimizer=optax.sgd(1e300), updates_per_step=2)
    update = jax.jit(functools.partial(update_discriminator, method))
    state, _, metrics = update(bigrams.state(method).discriminator, *bigrams.groups(method))
    assert np.isfinite(metrics["discriminator/loss"])
    assert not np.isfinite(metrics["discriminator/grad_norm"])
    assert metrics["discriminator/skipped"] == 1
    assert (state.step, state.skipped, state.skipped_in_row) == (2, 1, 1)


def test_weights_share_the_gradient_out_and_only_fresh_groups_are_measured(bigrams, keep_gradient):
    """Two fresh groups and two replayed ones, the last of them of no weight."""
    method = bigrams.method(discriminator_optimizer=keep_gradient)
    state, (groups, _) = bigrams.state(method).discriminator, bigrams.groups(method)
    weight = jnp.array([0.25, 0.25, 0.5, 0.0])
    update = jax.jit(functools.partial(update_discriminator, method), static_argnames="fresh")
    measured, judged, metrics = update(state, groups, weight, fresh=2)
    all_scores = dense_scores(bigrams.params["discriminator"], bigrams)
    assert_trees_close(judged.scores, all_scores[:2])

    def formula(params):
        scores = dense_scores(params, bigrams)
        return jnp.sum(weight * jnp.mean(jnp.log(1 + jnp.exp(scores[:, 1:] - scores[:, :1])), axis=1))

    assert_trees_close(measured.opt_state, jax.jit(jax.grad(formula))(bigrams.params["discriminator"]))
    expected = discriminator_metrics(method, all_scores[:2])
    assert_trees_close({name: metrics[name] for name in expected}, expected)
    assert abs(metrics["reward/mean"] - np.mean(all_scores[:, 1:])) > 1e-3


def test_a_collapsed_discriminator_moves_the_generator_nowhere(bigrams):
    """Constant scores: advantages of exactly zero, a KL of zero at the reference, and nothing that is not finite."""
    from gadjax.distill.losses import group_advantages

    method = bigrams.method()
    bigrams.params["discriminator"]["score"][:] = 0.0
    bigrams.reference = bigrams.params["generator"]
    state = bigrams.state(method)
    update = jax.jit(functools.partial(update_discriminator, method))
    discriminator, judged, metrics = update(state.discriminator, *bigrams.groups(method))
    bigrams.advantages = np.array(group_advantages(judged.scores[:, 1:]))
    np.testing.assert_array_equal(bigrams.advantages, 0.0)
    np.testing.assert_allclose(metrics["discriminator/loss"], np.log(2), rtol=RTOL)
    assert metrics["discriminator/accuracy"] == 0.0, "a tie tells nothing apart"
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(discriminator))
    generator, measured = policy_update(bigrams, method)
    assert measured["generator/grad_norm"] == 0.0 and measured["generator/kl"] == 0.0
    assert generator.skipped == 0


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_step_that_is_not_finite_is_skipped(bigrams, network):
    """Through the whole update; the counters' own rules are tested in test_state.py."""
    method = bigrams.method()
    state = getattr(bigrams.state(method), network)
    if network == "generator":
        bigrams.advantages[1, 2] = np.nan
        new, metrics = policy_update(bigrams, method)
    else:
        groups, weight = bigrams.groups(method)
        update = jax.jit(functools.partial(update_discriminator, method))
        new, _, metrics = update(state, groups, weight.at[1].set(np.inf))
    assert not np.isfinite(metrics[f"{network}/grad_norm"])
    assert_trees_equal((new.params, new.opt_state), (state.params, state.opt_state))
    assert (new.step, new.skipped, new.skipped_in_row) == (1, 1, 1)
    assert metrics[f"{network}/skipped"] == 1 and metrics[f"{network}/skipped"].dtype == np.int32
