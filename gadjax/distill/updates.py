"""The optimizer steps by policy gradient and by cross entropy, and the log-probs that they and the discriminator read.

Sections are those of `docs/algorithm.md`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed
from gadjax.distill import losses
from gadjax.distill.accumulation import accumulate
from gadjax.distill.forward import in_rows, of_tokens, per_token, response_lengths, response_logprobs
from gadjax.distill.method import Method
from gadjax.distill.state import TrainState, apply_gradients
from gadjax.models.lora import join
from gadjax.models.model import Params

Metrics = dict[str, Any]
Network = Literal["generator", "discriminator"]


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


def baseline_logprobs(method: Method, params: Params, groups: Packed, *, base: Params | None = None) -> jax.Array:
    """The log-probs, nats, of the tokens of each group's responses under a policy: [G, 1 + N, T], 0 after the end.

    A likelihood discriminator is measured against them. They are of the distribution that the samples come from, at
    the temperature of the rollout, unless `method.baseline_temperature` says otherwise.

    Args:
      method: the settings.
      params: the policy's: the reference, or the generator as it is.
      groups: [M, ...] as for `update_discriminator`.
      base: what the parameters are adapters of; None where everything is trained.
    """
    chosen = method.baseline_temperature
    temperature = method.sampling.temperature if chosen is None else chosen
    options: Any = {"temperature": temperature, "chunk": method.logprob_chunk}

    def of_rows(rows):
        return response_logprobs(method.generator, join(base, params), rows, **options)[0]

    rows = jax.lax.map(of_rows, groups)
    dense = of_tokens(rows, groups, method.sampling.max_response_length)
    return dense.reshape(-1, 1 + method.num_samples, dense.shape[-1])


def update_policy(
    method: Method,
    state: TrainState,
    reference: jax.Array,
    rows: Packed,
    sampled: jax.Array,
    advantages: jax.Array,
    teacher: Packed | None = None,
    demonstrations: jax.Array | None = None,
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
      advantages: [B, N] of the samples, or [B, N, T] of their tokens.
      teacher: [M', ...] the teacher's responses; needed where `sft_coefficient` or `demonstrations` is not 0.
      demonstrations: [B] advantages of the teacher's responses, which then join the samples; None without.
      base: what the trained parameters are adapters of; None where everything is trained.

    Returns:
      The new state, and metrics: means over the updates, whose per-token figures are means over tokens. The terms of
      `generator/loss`, weighed as they enter it, are `generator/policy_loss` and, where the method has them,
      `kl_loss`, `entropy_loss`, `sft_loss` and `demonstration_loss`.
    """
    advantages = advantages.reshape(*sampled.shape[:2], *advantages.shape[2:])

    def once(state, part):
        reference, rows, sampled, given = part
        answers = teacher, demonstrations
        return _update_policy_once(method, base, state, reference, rows, sampled, given, *answers)

    def epoch(state, _):
        return jax.lax.scan(once, state, (reference, rows, sampled, advantages))

    state, metrics = jax.lax.scan(epoch, state, length=method.ppo_epochs)
    return state, jax.tree.map(jnp.mean, metrics) | {"generator/skipped": state.skipped}


def _policy_logprobs(method, params, rows, **options):
    scaled = {"temperature": method.sampling.temperature, "chunk": method.logprob_chunk}
    return response_logprobs(method.generator, params, rows, **scaled, **options)


def _update_policy_once(method, base, state, reference, rows, sampled, advantages, teacher, demonstrations):
    """One optimizer step on a minibatch: [M, ...] rows, [S, T] sampled log-probs, [S] or [S, T] advantages."""
    lengths = response_lengths(rows)
    weights = losses.sequence_weights(lengths, method.aggregation, method.sampling.max_response_length)
    on_policy = method.ppo_minibatches == method.ppo_epochs == 1

    def loss(params, reference, rows):
        options = {"entropy_gradient": method.entropy_coefficient != 0}
        logprobs, entropy = _policy_logprobs(method, join(base, params), rows, **options)
        sampler = in_rows(sampled, rows)
        given = per_token(advantages, rows) if advantages.ndim == 1 else in_rows(advantages, rows)
        fixed = jax.lax.stop_gradient(logprobs)
        # The clipped surrogate. On the policy the old log-probs are its own, and the ratio is 1.
        clipping = (fixed if on_policy else sampler, given, method.clip, method.dual_clip)
        token_loss = losses.clipped_policy_gradient(logprobs, *clipping)
        if method.importance_cap and on_policy:  # off-policy the ratio itself is against the sampler's log-probs
            token_loss *= jnp.minimum(jnp.exp(fixed - sampler), method.importance_cap)
        # The KL is computed even where its weight is 0: it is the first metric to look at before a run is believed.
        kl = losses.k3_kl(logprobs, reference)
        terms = {"generator/policy_loss": token_loss}
        token_loss += method.kl_coefficient * kl - method.entropy_coefficient * entropy
        if method.kl_coefficient:
            terms["generator/kl_loss"] = method.kl_coefficient * kl
        if method.entropy_coefficient:
            terms["generator/entropy_loss"] = -method.entropy_coefficient * entropy
        # Sums over tokens, which become means once all micro-batches are through.
        sums = {
            "generator/kl": kl,
            "generator/entropy": entropy,
            "generator/sampler_gap": jnp.abs(fixed - sampler),
            "generator/clipped": losses.is_clipped(logprobs, *clipping),
        }
        sums = {name: jnp.sum(value * rows.mask) for name, value in sums.items()}
        weight = per_token(weights, rows)
        terms = {name: jnp.sum(weight * value) for name, value in terms.items()}
        return jnp.sum(weight * token_loss), (sums, terms)

    total, gradients, (sums, terms) = accumulate(loss, state.params, (reference, rows))
    terms = {name: jnp.sum(value) for name, value in terms.items()}
    # The cross-entropy term on the teacher's answers.
    if method.sft_coefficient:
        supervised, extra, _ = _supervised_gradients(method, base, state.params, teacher, method.generator)
        terms["generator/sft_loss"] = method.sft_coefficient * supervised
        total += terms["generator/sft_loss"]
        gradients = jax.tree.map(lambda g, e: g + method.sft_coefficient * e, gradients, extra)
    # The teacher's answers as members of the groups. They weigh as samples do, times their share.
    if demonstrations is not None:
        weight = _demonstration_share(method, state) * demonstrations / method.ppo_minibatches
        limit = method.sampling.max_response_length
        weight *= losses.member_weights(response_lengths(teacher), lengths, method.aggregation, limit)
        demonstrated, extra = _demonstration_gradients(method, base, state.params, teacher, weight)
        terms["generator/demonstration_loss"] = demonstrated
        total += demonstrated
        gradients = jax.tree.map(jnp.add, gradients, extra)
    state, norm = apply_gradients(method.generator_optimizer, state, gradients)
    means = {name: jnp.sum(value) / jnp.sum(lengths) for name, value in sums.items()}
    return state, {"generator/loss": total, "generator/grad_norm": norm, **terms, **means}


def _demonstration_share(method, state):
    """The share of the teacher's answers in this update, which falls linearly where it is annealed."""
    if not method.demonstration_steps:
        return method.demonstrations
    steps = state.step // method.updates["generator"]  # of the stage, whose optimizer starts at 0
    return method.demonstrations * jnp.maximum(1.0 - steps / method.demonstration_steps, 0.0)


def _demonstration_gradients(method, base, params, teacher, weight):
    """The policy loss -Σ weight * log-prob of the teacher's responses, weight [B], and its gradient.

    They are not samples of the policy, so there is no ratio to clip: the gradient is REINFORCE's.
    """

    def loss(params, rows):
        logprobs, _ = _policy_logprobs(method, join(base, params), rows)
        return -jnp.sum(per_token(weight, rows) * logprobs), None

    total, gradients, _ = accumulate(loss, params, (teacher,))
    return total, gradients


def update_supervised(
    method: Method,
    state: TrainState,
    teacher: Packed,
    *,
    base: Params | None = None,
    network: Network = "generator",
) -> tuple[TrainState, Metrics]:
    """One optimizer step of cross entropy on teacher responses: token mean, EOS included, temperature 1.

    Args:
      method: the settings.
      state: the network's.
      teacher: [M, ...] micro-batches of the teacher's responses.
      base: what the trained parameters are adapters of; None where everything is trained.
      network: the generator, or a likelihood discriminator.
    """
    optimizer = getattr(method, f"{network}_optimizer")
    total, gradients, entropy = _supervised_gradients(method, base, state.params, teacher, getattr(method, network))
    state, norm = apply_gradients(optimizer, state, gradients)
    loss = "generator/loss" if network == "generator" else "discriminator/nll"  # its loss is that on pairs
    return state, {
        loss: total,
        f"{network}/grad_norm": norm,
        f"{network}/entropy": jnp.sum(entropy) / jnp.sum(teacher.mask),
        f"{network}/skipped": state.skipped,
    }


def _supervised_gradients(method, base, params, teacher, model):
    """Cross entropy of a model in nats a token, its gradient, and the sum of the entropies of each micro-batch [M]."""
    tokens = jnp.sum(teacher.mask)

    def loss(params, rows):
        logprobs, entropy = response_logprobs(
            model, join(base, params), rows, temperature=1.0, chunk=method.logprob_chunk
        )
        return -jnp.sum(logprobs * rows.mask) / tokens, jnp.sum(entropy * rows.mask)

    return accumulate(loss, params, (teacher,))
