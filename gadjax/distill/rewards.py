"""From the discriminator's scores to the advantages of the policy gradient (`docs/algorithm.md`, section 3.3).

A `Judgement` is what the discriminator says of a batch. `advantages` makes rewards of it, of whole responses or of
single tokens (`gad.credit`), and standardises them. Each function is one option of the method.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gadjax.distill.losses import LEAST_STD, group_advantages
from gadjax.distill.method import Method


class Judgement(struct.PyTreeNode):
    """What the discriminator says of G groups, before its update: the teacher's response first, then the N samples."""

    scores: Any  # [G, 1 + N] float32: what the pair loss compares
    tokens: Any = None  # [G, 1 + N, T] float32, 0 after the end: D's values, or log φ; None where nothing reads them
    baseline: Any = None  # [G, 1 + N, T] float32: log π of a likelihood discriminator's score; None for another kind


class Advantages(NamedTuple):
    """How much better than expected each response was, in standard deviations."""

    samples: Any  # [B, N], or [B, N, T] with token credit
    demonstrations: Any = None  # [B] of the teacher's responses; None where they do not join the samples


class Statistics(struct.PyTreeNode):
    """The rewards of a stage so far: float32 scalars."""

    count: Any
    mean: Any
    deviation: Any  # the sum of squared differences to the mean

    @classmethod
    def none(cls) -> Statistics:
        """Statistics of no rewards."""
        return cls(*(jnp.zeros(()) for _ in range(3)))  # a donated state must not hold one array twice


def advantages(
    method: Method,
    judged: Judgement,
    sampled: jax.Array,
    lengths: jax.Array,
    statistics: Statistics | None = None,
) -> tuple[Advantages, Statistics | None, dict[str, jax.Array]]:
    """The advantages of the samples, and of the teacher's answers where those join them.

    Args:
      method: the settings.
      judged: what the discriminator says of the batch's B groups.
      sampled: [B, N, T] log-probs that the sampler recorded, nats.
      lengths: [B, N] tokens of the samples.
      statistics: of the stage's rewards so far; needed where `method.whitening` is "running".

    Returns:
      The advantages, the statistics with these rewards, and metrics.
    """
    if method.credit == "token":
        held = jnp.arange(sampled.shape[-1]) < lengths[..., None]
        rewards = jnp.where(held, token_rewards(method, judged, sampled), 0.0)
        metrics = {"reward/length_slope": length_slope(jnp.sum(rewards, axis=-1), lengths)}
        rewards, weight = discounted(rewards, method.discount), held.astype(rewards.dtype)
    else:
        rewards = sequence_rewards(method, judged, sampled, lengths)
        slope = length_slope(rewards, lengths)
        metrics = {"reward/length_slope": slope}
        if method.length_correction:
            rewards = without_length(rewards, lengths, slope)
        weight = jnp.ones_like(rewards)
    if method.whitening == "running":
        statistics = added(statistics or Statistics.none(), rewards, weight)
    limit = method.reward_clip or jnp.inf
    if not method.demonstrations:
        given = Advantages(whitened(method, rewards, weight, statistics))
    elif method.demonstration_reward:
        fixed = jnp.full(rewards.shape[0], method.demonstration_reward)
        given = Advantages(whitened(method, rewards, weight, statistics), fixed)
    else:  # the teacher's answer is a member of the group, and moves its mean
        both = group_advantages(jnp.concatenate([_teacher_rewards(method, judged), rewards], axis=-1))
        given = Advantages(both[:, 1:], jnp.clip(both[:, 0], -limit, limit))
    return given._replace(samples=jnp.clip(given.samples, -limit, limit)), statistics, metrics


def token_rewards(method: Method, judged: Judgement, sampled: jax.Array) -> jax.Array:
    """The reward of each sampled token, [B, N, T]: D's value at it, or beta * (log φ - log π)."""
    values = judged.tokens[:, 1:]
    if not method.measures_likelihood:
        return values
    baseline = sampled if method.reward_baseline == "policy" else judged.baseline[:, 1:]
    return method.discriminator_beta * (values - baseline)


def sequence_rewards(method: Method, judged: Judgement, sampled: jax.Array, lengths: jax.Array) -> jax.Array:
    """The reward of each sample, [B, N]: its score, or σ(its score - the teacher's) (TextGAIL, arXiv 2004.13796)."""
    rewards = judged.scores[:, 1:]
    if method.measures_likelihood:
        held = jnp.arange(sampled.shape[-1]) < lengths[..., None]
        rewards = jnp.sum(jnp.where(held, token_rewards(method, judged, sampled), 0.0), axis=-1)
    if method.reward == "bounded":
        rewards = jax.nn.sigmoid(rewards - judged.scores[:, :1])
    return rewards


def discounted(rewards: jax.Array, discount: float) -> jax.Array:
    """The discounted sum of a token's reward and those after it, for rewards [..., T]."""
    if not discount:
        return rewards

    def back(total, reward):
        total = reward + discount * total
        return total, total

    _, sums = jax.lax.scan(back, jnp.zeros(rewards.shape[:-1]), jnp.moveaxis(rewards, -1, 0), reverse=True)
    return jnp.moveaxis(sums, 0, -1)


def length_slope(rewards: jax.Array, lengths: jax.Array) -> jax.Array:
    """The least-squares slope of rewards [B, N] on lengths within the groups of a batch; 0 if no lengths differ.

    A slope below 0 says that shorter answers are paid better: the first sign of a collapse of the lengths.
    """
    longer = _centred(lengths.astype(rewards.dtype))
    spread = jnp.sum(longer**2)
    slope = jnp.sum(longer * _centred(rewards)) / jnp.where(spread > 0, spread, 1.0)
    return jnp.where(spread > 0, slope, 0.0)


def without_length(rewards: jax.Array, lengths: jax.Array, slope: jax.Array) -> jax.Array:
    """Rewards [B, N] less the part that the length explains, `slope` for each token beyond the group's mean."""
    return rewards - slope * _centred(lengths.astype(rewards.dtype))


def _centred(values: jax.Array) -> jax.Array:
    return values - jnp.mean(values, axis=-1, keepdims=True)


def added(statistics: Statistics, rewards: jax.Array, weight: jax.Array) -> Statistics:
    """The statistics with more rewards; weight 0 leaves a reward out.

    By the update of Chan, Golub and LeVeque (1983), which does not cancel where the mean is large. Rewards that are not
    finite leave the statistics as they are: their step is skipped, and the next one must not be.
    """
    before, count = statistics.count, jnp.sum(weight)
    mean = jnp.sum(weight * rewards) / count
    deviation = jnp.sum(weight * (rewards - mean) ** 2)
    gap, total = mean - statistics.mean, before + count
    new = Statistics(
        count=total,
        mean=statistics.mean + gap * count / total,
        deviation=statistics.deviation + deviation + gap**2 * before * count / total,
    )
    finite = jnp.isfinite(new.mean) & jnp.isfinite(new.deviation)
    return jax.tree.map(lambda now, old: jnp.where(finite, now, old), new, statistics)


def whitened(method: Method, rewards: jax.Array, weight: jax.Array, statistics: Statistics | None) -> jax.Array:
    """Rewards less their mean, over their standard deviation, both of what `method.whitening` names.

    Args:
      method: the settings.
      rewards: [B, N] or [B, N, T].
      weight: of the same shape, 1 where there is a reward and 0 where there is none.
      statistics: of the stage's rewards, these included; read by "running".
    """
    if method.whitening == "group" and rewards.ndim == 2:
        return group_advantages(rewards)
    if method.whitening == "running":
        assert statistics is not None
        mean, variance = statistics.mean, statistics.deviation / statistics.count
        equal = variance <= (LEAST_STD * mean) ** 2  # rounding of equal rewards
    else:
        axes = tuple(range(1 if method.whitening == "group" else 0, rewards.ndim))
        count = jnp.maximum(jnp.sum(weight, axis=axes, keepdims=True), 1.0)
        mean = jnp.sum(weight * rewards, axis=axes, keepdims=True) / count
        variance = jnp.sum(weight * (rewards - mean) ** 2, axis=axes, keepdims=True) / jnp.maximum(count - 1.0, 1.0)
        held = weight > 0
        least, most = (
            pick(jnp.where(held, rewards, fill), axis=axes, keepdims=True)
            for pick, fill in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
        )
        equal = least == most
    return jnp.where(equal, 0.0, weight * (rewards - mean) / (jnp.sqrt(variance) + LEAST_STD))


def _teacher_rewards(method: Method, judged: Judgement) -> jax.Array:
    """The teacher's answers' rewards [B, 1], in the units of `sequence_rewards`."""
    rewards = judged.scores[:, :1]
    return jnp.full_like(rewards, 0.5) if method.reward == "bounded" else rewards
