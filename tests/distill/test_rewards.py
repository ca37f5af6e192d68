"""Rewards and advantages against loops over prompts, samples and tokens."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from gadjax.distill import rewards
from gadjax.distill.rewards import Judgement, Statistics

pytestmark = pytest.mark.quick
B, N, T = 3, 4, 5
LENGTHS = np.array([[5, 1, 3, 2], [2, 2, 5, 4], [1, 1, 1, 1]])
SETTINGS = dict(
    discriminator_kind="likelihood",
    discriminator_beta=0.5,
    credit="sequence",
    discount=0.0,
    reward="raw",
    reward_baseline="policy",
    whitening="group",
    reward_clip=0.0,
    length_correction=False,
    demonstrations=0.0,
    demonstration_reward=2.0,
)


def method(**fields):
    settings = SETTINGS | fields
    return types.SimpleNamespace(**settings, measures_likelihood=settings["discriminator_kind"] == "likelihood")


@dataclasses.dataclass
class Case:
    judged: Judgement
    sampled: np.ndarray


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, B, 1 + N, T)).astype(np.float32)
    return Case(Judgement(rng.normal(size=(B, 1 + N)).astype(np.float32), values[0], values[1]), values[2, :, 1:])


def given(case, statistics=None, **fields):
    return rewards.advantages(method(**fields), case.judged, case.sampled, LENGTHS, statistics)


def token_rewards(case, baseline="policy", kind="likelihood"):
    """[b][n] lists of each token's reward."""
    against = case.sampled if baseline == "policy" else case.judged.baseline[:, 1:]
    values = np.asarray(case.judged.tokens[:, 1:], np.float64)
    values = values if kind == "score" else 0.5 * (values - against)
    return [[values[b, n, : LENGTHS[b, n]] for n in range(N)] for b in range(B)]


def standardised(values):
    values = np.asarray(values, np.float64)
    return (values - values.mean(-1, keepdims=True)) / (values.std(-1, ddof=1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("baseline", ["policy", "reference"])
def test_a_response_s_reward_is_the_sum_of_its_tokens(case, baseline):
    found, _, _ = given(case, reward_baseline=baseline)
    sums = [[np.sum(tokens) for tokens in of_prompt] for of_prompt in token_rewards(case, baseline)]
    np.testing.assert_allclose(found.samples, standardised(sums), rtol=1e-4, atol=1e-5)


def test_a_scalar_head_s_reward_is_its_score(case):
    found, _, _ = given(case, discriminator_kind="score")
    np.testing.assert_allclose(found.samples, standardised(case.judged.scores[:, 1:]), rtol=1e-4, atol=1e-5)


def test_bounded_rewards_compare_with_the_teacher(case):
    found, _, _ = given(case, discriminator_kind="score", reward="bounded")
    scores = case.judged.scores.astype(np.float64)
    np.testing.assert_allclose(
        found.samples, standardised(1 / (1 + np.exp(scores[:, :1] - scores[:, 1:]))), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("whitening", ["group", "batch"])
@pytest.mark.parametrize("kind", ["likelihood", "score"])
def test_a_token_answers_for_itself_and_what_follows(case, discount, whitening, kind):
    found, _, _ = given(case, credit="token", discount=discount, whitening=whitening, discriminator_kind=kind)
    sums = [
        [[sum(discount**k * r for k, r in enumerate(tokens[t:])) for t in range(len(tokens))] for tokens in of_prompt]
        for of_prompt in token_rewards(case, kind=kind)
    ]
    for b in range(B):
        pool = np.concatenate(
            [np.concatenate(of_prompt) for of_prompt in (sums if whitening == "batch" else [sums[b]])]
        )
        for n in range(N):
            expected = (np.array(sums[b][n]) - pool.mean()) / (pool.std(ddof=1) + 1e-6)
            np.testing.assert_allclose(found.samples[b, n, : LENGTHS[b, n]], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(found.samples[b, n, LENGTHS[b, n] :], 0.0)


def test_running_statistics_are_those_of_all_rewards_so_far(case):
    scores = case.judged.scores
    statistics, seen = Statistics.none(), []
    for step in range(3):
        judged = case.judged.replace(scores=scores * (1 + step))
        found, statistics, _ = rewards.advantages(
            method(discriminator_kind="score", whitening="running"), judged, case.sampled, LENGTHS, statistics
        )
        seen.append(judged.scores[:, 1:])
        pool = np.concatenate([np.ravel(each) for each in seen]).astype(np.float64)
        np.testing.assert_allclose(found.samples, (seen[-1] - pool.mean()) / (pool.std() + 1e-6), rtol=1e-4, atol=1e-4)
    assert statistics.count == 3 * B * N


def test_the_slope_on_the_length_is_that_of_a_regression_and_can_be_taken_out(case):
    _, _, metrics = given(case, discriminator_kind="score")
    centred = lambda x: (x - x.mean(-1, keepdims=True)).ravel()  # noqa: E731
    lengths, scores = centred(LENGTHS), centred(case.judged.scores[:, 1:])
    slope = np.polyfit(lengths, scores, 1)[0]
    np.testing.assert_allclose(metrics["reward/length_slope"], slope, rtol=1e-4)
    found, _, _ = given(case, discriminator_kind="score", length_correction=True)
    left = case.judged.scores[:, 1:] - slope * (LENGTHS - LENGTHS.mean(-1, keepdims=True))
    np.testing.assert_allclose(found.samples, standardised(left), rtol=1e-3, atol=1e-4)
    assert abs(np.polyfit(lengths, centred(left), 1)[0]) < 1e-6


def test_equal_lengths_have_no_slope(case):
    assert rewards.length_slope(case.judged.scores[:, 1:], np.full((B, N), 3)) == 0.0


def test_clipped_advantages(case):
    free, _, _ = given(case)
    found, _, _ = given(case, reward_clip=0.7)
    np.testing.assert_allclose(found.samples, np.clip(free.samples, -0.7, 0.7), rtol=1e-6)
    assert np.any(np.abs(free.samples) > 0.7)


def test_a_demonstration_has_its_own_advantage_or_joins_the_group(case):
    fixed, _, _ = given(case, demonstrations=0.3)
    np.testing.assert_array_equal(fixed.demonstrations, 2.0)
    joined, _, _ = given(case, discriminator_kind="score", demonstrations=0.3, demonstration_reward=0.0)
    both = standardised(case.judged.scores)
    np.testing.assert_allclose(joined.demonstrations, both[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(joined.samples, both[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("credit", ["sequence", "token"])
@pytest.mark.parametrize("whitening", ["group", "batch", "running"])
def test_equal_rewards_move_nothing(case, credit, whitening):
    same = jax.tree.map(lambda leaf: np.full_like(leaf, 10.3), case.judged)
    found, _, _ = rewards.advantages(
        method(credit=credit, whitening=whitening, discriminator_kind="score"),
        same,
        case.sampled,
        LENGTHS,
        Statistics.none(),
    )
    np.testing.assert_array_equal(found.samples, 0.0)


def test_statistics_neither_cancel_nor_keep_what_is_not_finite(case):
    """A mean of 1,000 beside a deviation of 0.01; and a NaN in one step, after which the next one is as before."""
    running = method(discriminator_kind="score", whitening="running")
    scores = 1000 + 0.01 * np.random.default_rng(1).normal(size=(B, 1 + N)).astype(np.float32)
    judged = case.judged.replace(scores=scores)
    found, statistics, _ = rewards.advantages(running, judged, case.sampled, LENGTHS, Statistics.none())
    pool = scores[:, 1:].astype(np.float64)
    np.testing.assert_allclose(found.samples, (pool - pool.mean()) / pool.std(), rtol=2e-2, atol=2e-2)
    broken = judged.replace(scores=np.where(np.arange(1 + N) == 2, np.float32("nan"), scores))
    _, after, _ = rewards.advantages(running, broken, case.sampled, LENGTHS, statistics)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)
