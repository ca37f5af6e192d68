"""The formulas of the updates on dense arrays, over the tables of `Bigrams`.

`tokens` [S, T] after the prompts' last tokens; nothing here knows of rows, slots or micro-batches.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def dense_distribution(params, tiny, tokens, times, temperature):
    """Log-probs and entropies [S, T] of the tables of `Bigrams`, `times` sequences to a prompt."""
    prompt, length = (np.repeat(tiny.batch[name], times, axis=0) for name in ("prompt", "prompt_length"))
    last = np.take_along_axis(prompt, length[:, None] - 1, axis=1)
    before = jnp.concatenate([last, tokens[:, :-1]], axis=1)
    positions = length[:, None] - 1.0 + np.arange(tokens.shape[1])
    hidden = params["embed"][before] * (1 + jnp.sin(positions))[..., None]
    everything = jax.nn.log_softmax(hidden @ params["head"] / temperature)
    chosen = jnp.take_along_axis(everything, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(everything) * everything, axis=-1)


def dense_policy_loss(params, tiny, method, lengths=None):
    """The policy loss of `docs/algorithm.md`, section 3.5. A length of 0 in `lengths` [S] leaves a sequence out."""
    tokens, sampled = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (tiny.samples.tokens, tiny.samples.logprobs))
    lengths = tiny.samples.lengths.reshape(-1) if lengths is None else lengths
    advantages = tiny.advantages.reshape(-1)[:, None]
    temperature = method.sampling.temperature
    logprobs, entropy = dense_distribution(params, tiny, tokens, method.num_samples, temperature)
    reference, _ = dense_distribution(tiny.reference, tiny, tokens, method.num_samples, temperature)
    on_policy = method.ppo_minibatches == method.ppo_epochs == 1
    ratio = jnp.exp(logprobs - (jax.lax.stop_gradient(logprobs) if on_policy else sampled))
    clipped = jnp.clip(ratio, 1 - method.clip, 1 + method.clip)
    loss = -jnp.minimum(advantages * ratio, advantages * clipped)
    loss = jnp.where((advantages < 0) & (loss > -advantages * method.dual_clip), -advantages * method.dual_clip, loss)
    if method.importance_cap and on_policy:
        weight = jnp.exp(jax.lax.stop_gradient(logprobs) - sampled)
        loss *= jnp.where(weight > method.importance_cap, method.importance_cap, weight)
    d = jnp.clip(reference - logprobs, -20, 20)
    loss += method.kl_coefficient * jnp.clip(jnp.exp(d) - d - 1, -10, 10) - method.entropy_coefficient * entropy
    sums = jnp.sum(jnp.where(np.arange(tokens.shape[1]) < lengths[:, None], loss, 0), axis=1)
    count = jnp.sum(lengths > 0)
    value = {
        "token_mean": jnp.sum(sums) / jnp.sum(lengths),
        "sequence_mean": jnp.sum(sums / jnp.maximum(lengths, 1)) / count,
        "constant": jnp.sum(sums / method.sampling.max_response_length) / count,
    }[method.aggregation]
    return value + (method.sft_coefficient * dense_supervised_loss(params, tiny) if method.sft_coefficient else 0)


def dense_supervised_loss(params, tiny):
    """Token mean, at temperature 1 whatever the sampling's."""
    logprobs, _ = dense_distribution(params, tiny, tiny.batch["teacher"], 1, 1.0)
    lengths = tiny.batch["teacher_length"]
    return -jnp.sum(jnp.where(np.arange(logprobs.shape[1]) < lengths[:, None], logprobs, 0)) / np.sum(lengths)


def dense_scores(params, tiny):
    """[B, 1 + N], the teacher's first: the table's value at each last token and its position."""
    lengths = np.concatenate([tiny.batch["teacher_length"][:, None], tiny.samples.lengths], axis=1)
    tokens = np.concatenate([tiny.batch["teacher"][:, None], tiny.samples.tokens], axis=1)
    last = np.take_along_axis(tokens, lengths[..., None] - 1, axis=-1)[..., 0]
    positions = tiny.batch["prompt_length"][:, None] + lengths - 1.0
    return (params["embed"] @ params["score"])[last] * (1 + jnp.sin(positions))


def dense_discriminator_loss(params, tiny, method):
    scores = dense_scores(params, tiny)
    teacher, student = scores[:, :1], scores[:, 1:]
    if method.discriminator_loss == "bt":
        return jnp.mean(jnp.log(1 + jnp.exp((student - teacher) / method.bt_temperature)))
    return jnp.mean(jnp.log(1 + jnp.exp(-teacher)) + jnp.log(1 + jnp.exp(student)))
