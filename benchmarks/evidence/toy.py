"""The paper's toy (its Fig. 5): a teacher with several modes, and a student that cannot have more than one.

The outputs are the digits 0 to 9. The teacher is a discrete mixture of two Gaussians; the student is one of a fixed
width, whose mean it learns. SeqKD minimises the cross entropy on the teacher's draws; GAD is REINFORCE on the scores of
a table with a number for each digit, which learns from pairs. Losses and advantages are gadjax's own.

A student that may also widen stays wide under both, since the reverse divergence has a local minimum there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gadjax.distill.losses import bradley_terry, group_advantages

DIGITS = np.arange(10)
MODES, SHARES, WIDTH, STUDENT_WIDTH = (2.0, 7.0), (0.6, 0.4), 0.8, 1.5
GROUP, BATCH = 8, 64
STEPS, RATE, DISCRIMINATOR_RATE = 600, 0.02, 0.1


class Spread(NamedTuple):
    """Where a student stands."""

    off_mode: float  # the distance of its mean from the nearest mode
    reverse_kl: float  # nats
    forward_kl: float


def teacher() -> np.ndarray:
    """The teacher's probabilities [10]."""
    parts = [
        share * np.exp(-((DIGITS - mode) ** 2) / (2 * WIDTH**2)) for mode, share in zip(MODES, SHARES, strict=True)
    ]
    return sum(parts) / np.sum(parts)


def seqkd(seed: int) -> Spread:
    """The student after cross entropy on the teacher's draws."""
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(mean, state, number):
        key = jax.random.fold_in(jax.random.key(seed), number)
        drawn = jax.random.categorical(key, jnp.log(teacher()), shape=(BATCH,))
        update, state = optimizer.update(jax.grad(lambda mean: -jnp.mean(log_probs(mean)[drawn]))(mean), state)
        return optax.apply_updates(mean, update), state

    mean = start(seed)
    state = optimizer.init(mean)
    for number in range(STEPS):
        mean, state = step(mean, state, number)
    return spread(float(mean))


def gad(seed: int) -> Spread:
    """The student after the game from the same start."""
    policy, judge = optax.adam(RATE), optax.adam(DISCRIMINATOR_RATE)

    @jax.jit
    def step(mean, state, scores, judged, number):
        first, second = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        given = jax.random.categorical(first, jnp.log(teacher()), shape=(BATCH,))
        own = jax.random.categorical(second, log_probs(mean), shape=(BATCH, GROUP))
        advantages = group_advantages(scores[own])  # of the discriminator before its update
        pairs = jax.grad(lambda scores: jnp.mean(bradley_terry(scores[given], scores[own])))(scores)
        gradient = jax.grad(lambda mean: -jnp.mean(advantages * log_probs(mean)[own]))(mean)
        update, judged = judge.update(pairs, judged)
        scores = optax.apply_updates(scores, update)
        update, state = policy.update(gradient, state)
        return optax.apply_updates(mean, update), state, scores, judged

    mean, scores = start(seed), jnp.zeros(len(DIGITS))
    carry = mean, policy.init(mean), scores, judge.init(scores)
    for number in range(STEPS):
        carry = step(*carry, number)
    return spread(float(carry[0]))


def start(seed: int) -> jax.Array:
    """The student's mean as it begins, near the middle."""
    return jnp.array(4.5 + np.random.default_rng(seed).uniform(-1, 1), jnp.float32)


def log_probs(mean: jax.Array) -> jax.Array:
    """The student's log-probabilities [10]."""
    return jax.nn.log_softmax(-((DIGITS - mean) ** 2) / (2 * STUDENT_WIDTH**2))


def spread(mean: float) -> Spread:
    """Where the student of this mean stands."""
    student, right = np.exp(np.asarray(log_probs(mean), np.float64)), teacher()
    off_mode = min(abs(mean - mode) for mode in MODES)
    return Spread(off_mode, _divergence(student, right), _divergence(right, student))


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * (np.log(p) - np.log(q))).sum())
