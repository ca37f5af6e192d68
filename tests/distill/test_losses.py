"""Each equation against numbers worked out by hand or by NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.distill import losses

pytestmark = pytest.mark.quick

TEACHER = np.array([1.0, -2.0], np.float32)
STUDENT = np.array([[0.5, 1.0, 4.0], [-2.0, -1.0, 0.0]], np.float32)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_bradley_terry_is_the_log_likelihood_of_preferring_the_teacher(temperature):
    pairs = losses.bradley_terry(TEACHER, STUDENT, temperature)
    np.testing.assert_allclose(pairs, -log_sigmoid((TEACHER[:, None] - STUDENT) / temperature), rtol=1e-6)


def test_cross_entropy_judges_each_side_alone():
    pairs = losses.cross_entropy(TEACHER, STUDENT)
    expected = -log_sigmoid(TEACHER)[:, None] - np.log(1 - 1 / (1 + np.exp(-STUDENT.astype(np.float64))))
    np.testing.assert_allclose(pairs, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.bradley_terry, losses.cross_entropy])
def test_pair_losses_stay_finite_at_scores_far_apart(loss):
    teacher, student = jnp.array([-1e4]), jnp.array([[1e4]])
    value, gradient = jax.value_and_grad(lambda t: loss(t, student)[0, 0])(teacher)
    assert np.isfinite(value) and value > 9e3
    np.testing.assert_allclose(gradient, [-1.0])


# Advantage, ratio; loss and its derivative with respect to the log-prob, at clip 0.2 and dual clip 3.
SURROGATE = [
    (2.0, 0.5, -1.0, -1.0),  # below the clip, where a good token may still rise
    (2.0, 1.1, -2.2, -2.2),
    (2.0, 1.5, -2.4, 0.0),  # clipped at 1.2
    (2.0, 9.0, -2.4, 0.0),  # the dual clip is for negative advantages alone
    (-2.0, 0.5, 1.6, 0.0),  # clipped at 0.8
    (-2.0, 0.9, 1.8, 1.8),
    (-2.0, 2.9, 5.8, 5.8),
    (-2.0, 9.0, 6.0, 0.0),  # the dual clip at 3
    (0.0, 9.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "value", "slope"), SURROGATE)
def test_clipped_policy_gradient(advantage, ratio, value, slope):
    old = jnp.float32(-2.0)
    surrogate = lambda logprob: losses.clipped_policy_gradient(logprob, old, jnp.float32(advantage), 0.2, 3.0)  # noqa: E731
    measured = jax.value_and_grad(surrogate)(old + jnp.log(jnp.float32(ratio)))
    np.testing.assert_allclose(measured, (value, slope), rtol=1e-5)


@pytest.mark.parametrize(("advantage", "ratio", "value", "slope"), SURROGATE)
def test_clipped_is_where_the_gradient_is_cut(advantage, ratio, value, slope):
    old = jnp.float32(-2.0)
    clipped = losses.is_clipped(old + jnp.log(jnp.float32(ratio)), old, jnp.float32(advantage), 0.2, 3.0)
    assert clipped == (advantage != 0 and slope == 0)


@pytest.mark.parametrize("advantage", [1.7, -0.4, 0.0])
def test_the_gradient_at_ratio_one_is_that_of_reinforce(advantage):
    """max() ties there: half of each branch must add up to the whole."""
    surrogate = lambda logprob, old: losses.clipped_policy_gradient(logprob, old, jnp.float32(advantage), 0.2, 3.0)  # noqa: E731
    logprob = jnp.float32(-3.3)
    np.testing.assert_allclose(jax.grad(surrogate)(logprob, logprob), -advantage, rtol=1e-6)


def test_k3_is_zero_at_the_reference_and_its_mean_is_the_kl():
    rng = np.random.default_rng(0)
    policy, reference = np.array(jax.nn.log_softmax(rng.normal(size=(2, 11)).astype(np.float32)))
    np.testing.assert_array_equal(losses.k3_kl(policy, policy), 0.0)
    estimate = losses.k3_kl(policy, reference)
    assert np.all(estimate >= 0)
    kl = np.sum(np.exp(policy) * (policy - reference))
    np.testing.assert_allclose(np.sum(np.exp(policy) * estimate), kl, rtol=1e-5)


@pytest.mark.parametrize(
    ("difference", "value", "slope"),
    [
        (1.0, np.e - 2, 1 - np.e),
        (-3.0, np.exp(-3) + 2, 1 - np.exp(-3)),
        (5.0, 10.0, 0.0),  # the estimate, e^5 - 6, is clamped
        (-10.5, 9.5 + np.exp(-10.5), 1 - np.exp(-10.5)),
        (-15.0, 10.0, 0.0),
        (1e4, 10.0, 0.0),  # without the clamp at 20, exp() overflows and the gradient is NaN
    ],
)
def test_k3_is_clamped(difference, value, slope):
    measured = jax.value_and_grad(losses.k3_kl)(jnp.float32(-1.0), jnp.float32(difference - 1.0))
    np.testing.assert_allclose(measured, (value, slope), rtol=1e-5)


LENGTHS = np.array([[3, 1, 0], [6, 2, 4]])


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("token_mean", np.full((2, 3), 1 / 16)),
        ("sequence_mean", np.array([[1 / 15, 1 / 5, np.nan], [1 / 30, 1 / 10, 1 / 20]])),
        ("constant", np.full((2, 3), 1 / (8 * 5))),
    ],
)
def test_sequence_weights(aggregation, weights):
    """An empty sequence counts as none; its own weight meets no token."""
    measured = np.array(losses.sequence_weights(jnp.array(LENGTHS), aggregation, max_response_length=8))
    held = LENGTHS > 0
    np.testing.assert_allclose(measured[held], weights[held], rtol=1e-6)
    assert np.all(np.isfinite(measured))


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="mean_of_means"):
        losses.sequence_weights(jnp.array([1]), "mean_of_means", 8)


def test_rewards_are_standardised_within_each_group_by_the_unbiased_std():
    rewards = np.array([[1.0, 2.0, 6.0], [-1.0, 0.0, 0.5]], np.float32)
    mean = rewards.mean(axis=1, keepdims=True)
    std = np.sqrt(((rewards - mean) ** 2).sum(axis=1, keepdims=True) / 2)
    np.testing.assert_allclose(losses.group_advantages(rewards), (rewards - mean) / (std + 1e-6), rtol=1e-5)


def test_the_epsilon_is_the_algorithm_s():
    """Where the rewards of a group nearly agree, 1e-6 decides: std 1e-6 gives half of the standardised value."""
    rewards = np.array([[-1e-6, 0.0, 1e-6]], np.float32)
    np.testing.assert_allclose(losses.group_advantages(rewards), [[-0.5, 0.0, 0.5]], rtol=1e-5)


def test_a_group_belongs_to_one_prompt():
    """Moving all rewards of one prompt moves no advantage; in float32 up to the rounding of the rewards."""
    rewards = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    shifted = rewards + np.arange(5, dtype=np.float32)[:, None]
    np.testing.assert_allclose(losses.group_advantages(shifted), losses.group_advantages(rewards), atol=1e-5)


def test_equal_rewards_give_advantages_of_exactly_zero():
    """Their mean need not be exact: three times 0.1 is not 0.3, and the rest over 1e-6 would be an advantage."""
    for value in (0.1, -7.3, 1234.567, 0.0):
        for count in (2, 3, 7, 8):
            np.testing.assert_array_equal(losses.group_advantages(np.full((2, count), value, np.float32)), 0.0)
