from __future__ import annotations

import numpy as np

from gadjax.distill.advantages import group_advantages


def test_rewards_are_standardised_within_each_group_by_the_unbiased_std():
    rewards = np.array([[1.0, 2.0, 6.0], [-1.0, 0.0, 0.5]], np.float32)
    mean = rewards.mean(axis=1, keepdims=True)
    std = np.sqrt(((rewards - mean) ** 2).sum(axis=1, keepdims=True) / 2)
    np.testing.assert_allclose(group_advantages(rewards), (rewards - mean) / (std + 1e-6), rtol=1e-5)


def test_the_epsilon_is_the_algorithm_s():
    """Where the rewards of a group nearly agree, 1e-6 decides: std 1e-6 gives half of the standardised value."""
    rewards = np.array([[-1e-6, 0.0, 1e-6]], np.float32)
    np.testing.assert_allclose(group_advantages(rewards), [[-0.5, 0.0, 0.5]], rtol=1e-5)


def test_a_group_belongs_to_one_prompt():
    """Moving all rewards of one prompt moves no advantage; in float32 up to the rounding of the rewards."""
    rewards = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    shifted = rewards + np.arange(5, dtype=np.float32)[:, None]
    np.testing.assert_allclose(group_advantages(shifted), group_advantages(rewards), atol=1e-5)


def test_equal_rewards_give_advantages_of_exactly_zero():
    """Their mean need not be exact: three times 0.1 is not 0.3, and the rest over 1e-6 would be an advantage."""
    for value in (0.1, -7.3, 1234.567, 0.0):
        for count in (2, 3, 7, 8):
            np.testing.assert_array_equal(group_advantages(np.full((2, count), value, np.float32)), 0.0)
