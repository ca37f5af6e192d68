"""The optimizer steps of the discriminator and of the generator, the latter by policy gradient or cross entropy.

Each reads rows in micro-batches, whose gradients it adds up. Sections are those of `docs/algorithm.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed
from gadjax.distill import losses
from gadjax.distill.forward import per_token, response_lengths, response_logprobs, sequence_scores
from gadjax.distill.method import Method
from gadjax.distill.state import TrainState, apply_gradients
from gadjax.models.lora import join
from gadjax.models.model import Params

Metrics = dict[str, Any]


def update_discriminator(
    method: Method,
    state: TrainState,
    groups: Packed,
    weight: jax.Array,
    *,
    base: Params | None = None,
    fresh: int | None = None,
    train: bool = True,
) -> tuple[TrainState, jax.Array, Metrics]:
    """Scores every group, then updates the discriminator `updates_per_step` times on its pairs of teacher and sample.

    The scores come out of the forward pass of the first update (sections 3.2 and 3.4).

    Args:
      method: the settings.
      state: the discriminator's.
      groups: [M, ...] micro-batches of G groups. A group is in one micro-batch; its sequences are the teacher's
        response and the samples 1..N, in this order.
      weight: [G] weight of each group's mean pair loss; they sum to 1. Groups of weight 0 are only scored.
      base: what the trained parameters are adapters of; None where everything is trained.
      fresh: the number of groups, from the first, that the metrics are computed on. Replayed groups follow them. None
        stands for all.
      train: whether to update; scores and metrics are the same either way.

    Returns:
      The new state, the scores [G, 1 + N] before the first update, the teacher's first, and metrics: those of the
      scores, and the gradient's norm as the mean over the updates.
    """

    def loss(params, groups):
        scores = sequence_scores(method.discriminator, join(base, params), groups).reshape(weight.shape[0], -1)
        # Groups of other micro-batches have no place here, and score 0.
        here = groups.last.reshape(scores.shape)[:, 0] >= 0
        return jnp.sum(jnp.where(here, weight, 0.0) * jnp.mean(_pair_losses(method, scores), axis=-1)), scores

    metrics = {}
    if not train:
        _, scores = jax.lax.map(lambda micro: loss(state.params, micro), groups)
    else:

        def once(state, _):
            _, gradients, scores = accumulate(loss, state.params, (groups,))
            state, norm = apply_gradients(method.discriminator_optimizer, state, gradients)
            return state, (norm, scores)

        # A scan holds one state, whatever the number of updates.
        state, (norms, scores) = jax.lax.scan(once, state, length=method.updates_per_step)
        scores = scores[0]
        # The mean, so that one norm that is not finite shows.
        metrics = {"discriminator/grad_norm": jnp.mean(norms), "discriminator/skipped": state.skipped}
    scores = jnp.sum(scores, axis=0)  # over micro-batches, each with zeros for the groups of the others
    return state, scores, metrics | discriminator_metrics(method, scores[:fresh])


def reference_logprobs(method: Method, reference: Params, rows: Packed, *, base: Params | None = None) -> jax.Array:
    """The reference's log-probs of all samples, nats: [J, M, R, K].

    No update of a rollout changes them, so they are computed once.

    Args:
      method: the settings.
      reference: parameters of the policy that the KL is measured against.
      rows: [J, M, ...] minibatches of micro-batches, as for `update_policy`.
      base: what the parameters are adapters of; None where everything is trained.
    """

    def of_rows(rows):
        return _policy_logprobs(method, join(base, reference), rows)[0]

    return jax.lax.map(lambda minibatch: jax.lax.map(of_rows, minibatch), rows)


def update_policy(
    method: Method,
    state: TrainState,
    reference: jax.Array,
    rows: Packed,
    sampled: jax.Array,
    advantages: jax.Array,
    teacher: Packed | None = None,
    *,
    base: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """The policy-gradient updates of one rollout: `ppo_epochs` passes over its minibatches (section 3.5).

    Args:
      method: the settings.
      state: the generator's.
      reference: [J, M, R, K] `reference_logprobs` of the same rows.
      rows: [J, M, ...] minibatches of micro-batches: the B * N samples in order, S = B * N / J to a minibatch.
      sampled: [J, S, T] log-probs recorded by the sampler.
      advantages: [B, N].
      teacher: [M', ...] the teacher's responses; needed where `sft_coefficient` is not 0.
      base: what the trained parameters are adapters of; None where everything is trained.

    Returns:
      The new state, and metrics: means over the updates, whose per-token figures are means over tokens.
    """
    advantages = advantages.reshape(sampled.shape[:2])

    def once(state, part):
        reference, rows, sampled, advantages = part
        return _update_policy_once(method, base, state, reference, rows, sampled, advantages, teacher)

    def epoch(state, _):
        return jax.lax.scan(once, state, (reference, rows, sampled, advantages))

    state, metrics = jax.lax.scan(epoch, state, length=method.ppo_epochs)
    return state, jax.tree.map(jnp.mean, metrics) | {"generator/skipped": state.skipped}


def _policy_logprobs(method, params, rows, **options):
    scaled = {"temperature": method.sampling.temperature, "chunk": method.logprob_chunk}
    return response_logprobs(method.generator, params, rows, **scaled, **options)


def _update_policy_once(method, base, state, reference, rows, sampled, advantages, teacher):
    """One optimizer step on a minibatch: [M, ...] rows, [S, T] sampled log-probs, [S] advantages."""
    lengths = response_lengths(rows)
    weights = losses.sequence_weights(lengths, method.aggregation, method.sampling.max_response_length)
    on_policy = method.ppo_minibatches == method.ppo_epochs == 1

    def loss(params, reference, rows):
        options = {"entropy_gradient": method.entropy_coefficient != 0}
        logprobs, entropy = _policy_logprobs(method, join(base, params), rows, **options)
        sampler = sampled.at[rows.owner, rows.step].get(mode="fill", fill_value=0.0)
        fixed = jax.lax.stop_gradient(logprobs)
        # The clipped surrogate. On the policy the old log-probs are its own, and the ratio is 1.
        clipping = (fixed if on_policy else sampler, per_token(advantages, rows), method.clip, method.dual_clip)
        token_loss = losses.clipped_policy_gradient(logprobs, *clipping)
        if method.importance_cap and on_policy:  # off-policy the ratio itself is against the sampler's log-probs
            token_loss *= jnp.minimum(jnp.exp(fixed - sampler), method.importance_cap)
        # The KL is computed even where its weight is 0: it is the first metric to look at before a run is believed.
        kl = losses.k3_kl(logprobs, reference)
        token_loss += method.kl_coefficient * kl - method.entropy_coefficient * entropy
        # Sums over tokens, which become means once all micro-batches are through.
        sums = {
            "generator/kl": kl,
            "generator/entropy": entropy,
            "generator/sampler_gap": jnp.abs(fixed - sampler),
            "generator/clipped": losses.is_clipped(logprobs, *clipping),
        }
        sums = {name: jnp.sum(value * rows.mask) for name, value in sums.items()}
        return jnp.sum(per_token(weights, rows) * token_loss), sums

    total, gradients, sums = accumulate(loss, state.params, (reference, rows))
    # The cross-entropy term on the teacher's answers.
    if teacher is not None:
        supervised, extra, _ = _supervised_gradients(method, base, state.params, teacher)
        total += method.sft_coefficient * supervised
        gradients = jax.tree.map(lambda g, e: g + method.sft_coefficient * e, gradients, extra)
    state, norm = apply_gradients(method.generator_optimizer, state, gradients)
    means = {name: jnp.sum(value) / jnp.sum(lengths) for name, value in sums.items()}
    return state, {"generator/loss": total, "generator/grad_norm": norm, **means}


def update_supervised(
    method: Method, state: TrainState, teacher: Packed, *, base: Params | None = None
) -> tuple[TrainState, Metrics]:
    """One optimizer step of cross entropy on teacher responses: token mean, EOS included, temperature 1.

    Args:
      method: the settings.
      state: the generator's.
      teacher: [M, ...] micro-batches of the teacher's responses.
      base: what the trained parameters are adapters of; None where everything is trained.
    """
    total, gradients, entropy = _supervised_gradients(method, base, state.params, teacher)
    state, norm = apply_gradients(method.generator_optimizer, state, gradients)
    return state, {
        "generator/loss": total,
        "generator/grad_norm": norm,
        "generator/entropy": jnp.sum(entropy) / jnp.sum(teacher.mask),
        "generator/skipped": state.skipped,
    }


def _supervised_gradients(method, base, params, teacher):
    """Cross entropy per token, its gradient, and the sum of the entropies of each micro-batch [M]."""
    tokens = jnp.sum(teacher.mask)

    def loss(params, rows):
        logprobs, entropy = response_logprobs(
            method.generator, join(base, params), rows, temperature=1.0, chunk=method.logprob_chunk
        )
        return -jnp.sum(logprobs * rows.mask) / tokens, jnp.sum(entropy * rows.mask)

    return accumulate(loss, params, (teacher,))


def discriminator_metrics(method: Method, scores: jax.Array) -> Metrics:
    """The loss, the accuracy and margin over pairs, and the rewards, from the scores [G, 1 + N] of fresh groups."""
    teacher, student = scores[:, :1], scores[:, 1:]
    return {
        "discriminator/loss": jnp.mean(_pair_losses(method, scores)),
        "discriminator/accuracy": jnp.mean(teacher > student),
        "discriminator/margin": jnp.mean(teacher - student),
        "reward/mean": jnp.mean(student),
        "reward/std": jnp.std(student),
    }


def _pair_losses(method, scores):
    """The loss [G, N] of each pair, from scores [G, 1 + N] with the teacher's first."""
    teacher, student = scores[:, 0], scores[:, 1:]
    if method.discriminator_loss == "bt":
        return losses.bradley_terry(teacher, student, method.bt_temperature)
    return losses.cross_entropy(teacher, student)


def accumulate(
    loss: Callable[..., tuple[jax.Array, Any]], params: Params, micro: tuple
) -> tuple[jax.Array, Params, Any]:
    """Sums a loss and its gradient over micro-batches, one after another.

    Args:
      loss: takes the parameters and a micro-batch; returns the micro-batch's share of the whole loss, a scalar, and
        auxiliary values.
      params: what to differentiate.
      micro: trees with a leading axis of M micro-batches.

    Returns:
      The loss, its gradient, and the auxiliary values stacked [M, ...].
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def step(carry, micro):
        (value, auxiliary), gradients = value_and_grad(params, *micro)
        return jax.tree.map(jnp.add, carry, (value, gradients)), auxiliary

    if jax.tree.leaves(micro)[0].shape[0] == 1:  # saves the scan's buffer of gradients
        (value, auxiliary), gradients = value_and_grad(params, *jax.tree.map(lambda leaf: leaf[0], micro))
        return value, gradients, jax.tree.map(lambda leaf: leaf[None], auxiliary)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (value, gradients), auxiliary = jax.lax.scan(step, zero, micro)
    return value, gradients, auxiliary
