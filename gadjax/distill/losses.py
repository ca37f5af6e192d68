"""The losses of GAD (arXiv 2511.10643), one function for each equation.

They return a value per token or per pair, which `gadjax.distill.updates` adds up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

LEAST_STD = 1e-6  # added to a standard deviation of rewards (`docs/algorithm.md`, section 3.3)
Aggregation = Literal["token_mean", "sequence_mean", "constant"]
# (scores of the teacher's answers [B], scores of the samples [B, N]) -> the loss of each pair [B, N].
PairLoss = Callable[[jax.Array, jax.Array], jax.Array]


def bradley_terry(teacher: jax.Array, student: jax.Array, temperature: float = 1.0) -> jax.Array:
    """The loss -log σ((D(y_t) - D(y_s)) / temperature) of each pair (the paper's Eq. 1).

    Args:
      teacher: [B] scores D(y_t).
      student: [B, N] scores D(y_s).
      temperature: divides the difference.

    Returns:
      [B, N].
    """
    return -jax.nn.log_sigmoid((teacher[:, None] - student) / temperature)


def cross_entropy(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """The loss -log σ(D(y_t)) - log(1 - σ(D(y_s))) of each pair (the paper's CE ablation); shapes as above."""
    return -jax.nn.log_sigmoid(teacher)[:, None] - jax.nn.log_sigmoid(-student)


def group_advantages(rewards: jax.Array) -> jax.Array:
    """The advantages (r - mean) / (std + 1e-6) within each prompt's group, with the unbiased std (section 3.3; GRPO).

    A collapsed discriminator gives equal rewards; their advantages are exactly zero.

    Args:
      rewards: [B, N], N >= 2.

    Returns:
      [B, N].
    """
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    equal = jnp.max(rewards, axis=-1, keepdims=True) == jnp.min(rewards, axis=-1, keepdims=True)
    std = jnp.std(rewards, axis=-1, ddof=1, keepdims=True)
    return jnp.where(equal, 0.0, centred / (std + LEAST_STD))


def clipped_policy_gradient(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, clip: float, dual_clip: float
) -> jax.Array:
    """The clipped surrogate of PPO, to be minimised, with the dual clip of Ye et al. (arXiv 1912.09729).

    Args:
      logprobs: log-probs of the tokens under the policy that learns, nats; any shape.
      old_logprobs: log-probs under the policy that sampled. Where both are equal the ratio is 1 and the gradient is
        that of REINFORCE.
      advantages: the advantage of each token.
      clip: the ratio is clipped to 1 ± clip.
      dual_clip: bounds the loss at -dual_clip * A where the advantage A is negative.

    Returns:
      The loss of each token.
    """
    ratio = jnp.exp(logprobs - old_logprobs)
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))
    return jnp.where(advantages < 0, jnp.minimum(loss, -advantages * dual_clip), loss)


def is_clipped(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, clip: float, dual_clip: float
) -> jax.Array:
    """Whether `clipped_policy_gradient` cuts a token's gradient to zero: bool, for the same arguments.

    A token of advantage 0 has no gradient to cut.
    """
    ratio = jnp.exp(logprobs - old_logprobs)
    raised = (advantages > 0) & (ratio > 1 + clip)
    lowered = (advantages < 0) & ((ratio < 1 - clip) | (ratio > dual_clip))
    return raised | lowered


def k3_kl(logprobs: jax.Array, reference: jax.Array) -> jax.Array:
    """Schulman's k3 estimate of KL(policy || reference) per token, nats: exp(d) - d - 1 with d = reference - logprobs.

    d is clamped to ±20 and the estimate to ±10 (`docs/algorithm.md`, section 3.5).
    """
    difference = jnp.clip(reference - logprobs, -20.0, 20.0)
    return jnp.clip(jnp.exp(difference) - difference - 1.0, -10.0, 10.0)


def sequence_weights(lengths: jax.Array, aggregation: Aggregation, max_response_length: int) -> jax.Array:
    """Weight of each token of a sequence, such that the batch's loss is the weighted sum over all of its tokens.

    Fixed before any micro-batch is cut, so that accumulation changes nothing but memory.

    Args:
      lengths: response tokens of all sequences of one optimizer step, any shape; 0 for none.
      aggregation: "token_mean" (GAD's: one mean over all tokens), "sequence_mean" (the mean of sequence means) or
        "constant" (each sequence's sum over `max_response_length`: no bias by length, as in Dr. GRPO).
      max_response_length: the constant divisor.
    """
    sequences = jnp.maximum(jnp.sum(lengths > 0), 1)
    if aggregation == "token_mean":
        return jnp.broadcast_to(1.0 / jnp.maximum(jnp.sum(lengths), 1), lengths.shape)
    if aggregation == "sequence_mean":
        return 1.0 / (jnp.maximum(lengths, 1) * sequences)
    if aggregation == "constant":
        return jnp.broadcast_to(1.0 / (max_response_length * sequences), lengths.shape)
    raise ValueError(f"unknown aggregation {aggregation!r}")


def member_weights(
    members: jax.Array, lengths: jax.Array, aggregation: Aggregation, max_response_length: int
) -> jax.Array:
    """Weight of each token of further members of a batch: what `sequence_weights` gives a sampled token of it.

    Args:
      members: response tokens of the further sequences, [B].
      lengths: response tokens of the batch's sequences, as for `sequence_weights`.
      aggregation: as for `sequence_weights`.
      max_response_length: as for `sequence_weights`.

    Returns:
      [B].
    """
    sequences = jnp.maximum(jnp.sum(lengths > 0), 1)
    if aggregation == "sequence_mean":
        return 1.0 / (jnp.maximum(members, 1) * sequences)
    whole = jnp.maximum(jnp.sum(lengths), 1) if aggregation == "token_mean" else max_response_length * sequences
    return jnp.broadcast_to(1.0 / whole, members.shape)
