"""What the discriminator says of groups, and its optimizer step. Sections are those of `docs/algorithm.md`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed
from gadjax.distill import losses
from gadjax.distill.accumulation import accumulate
from gadjax.distill.forward import (
    of_tokens,
    per_sequence,
    pool,
    pooled_scores,
    response_lengths,
    response_logprobs,
    token_scores,
)
from gadjax.distill.method import Method
from gadjax.distill.rewards import Judgement
from gadjax.distill.state import TrainState, apply_gradients
from gadjax.models.lora import join
from gadjax.models.model import Params

Metrics = dict[str, Any]


def update_discriminator(
    method: Method,
    state: TrainState,
    groups: Packed,
    weight: jax.Array,
    baseline: jax.Array | None = None,
    *,
    base: Params | None = None,
    fresh: int | None = None,
    train: bool = True,
) -> tuple[TrainState, Judgement, Metrics]:
    """Judges every group, then updates the discriminator `updates_per_step` times on its pairs of teacher and sample.

    The judgement comes out of the forward pass of the first update (sections 3.2 and 3.4).

    Args:
      method: the settings.
      state: the discriminator's.
      groups: [M, ...] micro-batches of G groups. A group is in one micro-batch; its sequences are the teacher's
        response and the samples 1..N, in this order.
      weight: [G] weight of each group's mean pair loss; they sum to 1. Groups of weight 0 are only scored.
      baseline: [G, 1 + N, T] log-probs that a likelihood discriminator is measured against
        (`gadjax.distill.updates.baseline_logprobs`); None for a scalar head.
      base: what the trained parameters are adapters of; None where everything is trained.
      fresh: the number of groups, from the first, that are judged and that the metrics are computed on. Replayed groups
        follow them. None stands for all.
      train: whether to update; the judgement and its metrics are the same either way.

    Returns:
      The new state, the judgement of the fresh groups before the first update, and metrics: those of the scores, and
      the gradient's norm as the mean over the updates.
    """
    count = weight.shape[0]
    compared = None if baseline is None else jnp.sum(baseline, axis=-1).reshape(-1)
    lengths = response_lengths(groups).reshape(count, -1)

    def loss(params, groups):
        scores, values = _judge(method, join(base, params), groups, compared)
        scores = scores.reshape(count, -1)
        # Groups of other micro-batches have no place here, and score 0.
        here = groups.last.reshape(scores.shape)[:, 0] >= 0
        total = jnp.sum(jnp.where(here, weight, 0.0) * jnp.mean(_pair_losses(method, scores), axis=-1))
        if method.discriminator_sft_coefficient and method.measures_likelihood:
            likelihoods = per_sequence(values, groups).reshape(scores.shape)[:, 0]
            nll = -jnp.sum(weight * likelihoods) / jnp.sum(weight * lengths[:, 0])
            total += method.discriminator_sft_coefficient * nll
        return total, (scores, values)

    metrics = {}
    if not train:
        _, (scores, values) = jax.lax.map(lambda micro: loss(state.params, micro), groups)
    else:

        def once(state, _):
            _, gradients, judged = accumulate(loss, state.params, (groups,))
            state, norm = apply_gradients(method.discriminator_optimizer, state, gradients)
            return state, (norm, judged)

        # A scan holds one state, whatever the number of updates.
        state, (norms, judged) = jax.lax.scan(once, state, length=method.updates_per_step)
        scores, values = jax.tree.map(lambda leaf: leaf[0], judged)
        # The mean, so that one norm that is not finite shows.
        metrics = {"discriminator/grad_norm": jnp.mean(norms), "discriminator/skipped": state.skipped}
    scores = jnp.sum(scores, axis=0)  # over micro-batches, each with zeros for the groups of the others
    metrics |= discriminator_metrics(method, scores[:fresh])
    judged = Judgement(scores[:fresh])
    if method.values_tokens:
        dense = of_tokens(values, groups, method.sampling.max_response_length)
        dense = dense.reshape(*scores.shape, -1)[:fresh]
        judged = judged.replace(tokens=dense, baseline=None if baseline is None else baseline[:fresh])
        if method.measures_likelihood:
            metrics["discriminator/nll"] = -jnp.sum(dense[:, 0]) / jnp.sum(lengths[:fresh, 0])
    return state, judged, metrics


def _judge(
    method: Method, params: Params, rows: Packed, compared: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """The score [S] of each sequence of a micro-batch, and the values [R, K] of its tokens where something reads them.

    Sequences of other micro-batches score 0. `compared`: [S] log-likelihoods under the baseline.
    """
    model = method.discriminator
    assert model is not None
    if method.measures_likelihood:
        logprobs, _ = response_logprobs(model, params, rows, temperature=1.0, chunk=method.logprob_chunk)
        ratios = per_sequence(logprobs, rows) - compared
        return method.discriminator_beta * jnp.where(rows.last < 0, 0.0, ratios), logprobs
    if not method.values_tokens:
        return pooled_scores(model, params, rows, method.discriminator_pooling), None
    values = token_scores(model, params, rows)
    return pool(values, rows, method.discriminator_pooling), values


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
    if method.pair_loss is not None:
        return method.pair_loss(teacher, student)
    if method.discriminator_loss == "bt":
        return losses.bradley_terry(teacher, student, method.bt_temperature)
    return losses.cross_entropy(teacher, student)
