"""Rows for the whole-step functions: one sequence a row, laid out on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed, one_per_row
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Samples

Batch = dict[str, jax.Array]  # prompt [B, P], prompt_length [B], teacher [B, T], teacher_length [B], row [B]


def teacher_rows(method: Method, batch: Batch) -> Packed:
    """The batch's prompts with the teacher's responses: [M, ...] micro-batches of the generator's update."""
    fields = batch["prompt"], batch["prompt_length"], batch["teacher"], batch["teacher_length"]
    return _micro_batches(fields, method.generator_micro_batches)


def policy_rows(method: Method, batch: Batch, samples: Samples) -> tuple[Packed, jax.Array]:
    """All B * N samples, [J, M, ...] minibatches of micro-batches, and the sampler's log-probs, [J, S, T]."""
    fields = (*_repeated_prompts(batch, method.num_samples), _flat(samples.tokens), _flat(samples.lengths))
    sampled, minibatches = _flat(samples.logprobs), method.ppo_minibatches
    fields, sampled = jax.tree.map(lambda x: x.reshape(minibatches, -1, *x.shape[1:]), (fields, sampled))
    return jax.vmap(lambda *fields: _micro_batches(fields, method.generator_micro_batches))(*fields), sampled


def group_rows(method: Method, batch: Batch, samples: Samples) -> tuple[Packed, jax.Array]:
    """Each prompt's group, the teacher's response first and then its samples, [M, ...], and equal weights [G]."""
    width = max(batch["teacher"].shape[-1], samples.tokens.shape[-1])
    widen = lambda tokens: jnp.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(0, width - tokens.shape[-1])])  # noqa: E731
    tokens = jnp.concatenate([widen(batch["teacher"])[:, None], widen(samples.tokens)], axis=1)
    lengths = jnp.concatenate([batch["teacher_length"][:, None], samples.lengths], axis=1)
    fields = (*_repeated_prompts(batch, 1 + method.num_samples), _flat(tokens), _flat(lengths))
    groups = lengths.shape[0]
    return _micro_batches(fields, method.discriminator_micro_batches), jnp.full(groups, 1.0 / groups)


def _flat(grouped: jax.Array) -> jax.Array:
    return grouped.reshape(-1, *grouped.shape[2:])


def _repeated_prompts(batch: Batch, times: int) -> tuple[jax.Array, jax.Array]:
    return jnp.repeat(batch["prompt"], times, axis=0), jnp.repeat(batch["prompt_length"], times, axis=0)


def _micro_batches(fields: tuple[jax.Array, ...], parts: int) -> Packed:
    """Equal runs of consecutive sequences."""
    total = fields[0].shape[0]
    rows = jax.vmap(one_per_row)(*(field.reshape(parts, -1, *field.shape[1:]) for field in fields))
    first = jnp.arange(parts)[:, None] * (total // parts)
    everywhere = jnp.full((parts, total), -1, rows.last.dtype)
    return rows.replace(
        owner=jnp.where(rows.mask, first[..., None] + rows.owner, total),
        last=jax.vmap(lambda all, here, at: jax.lax.dynamic_update_slice(all, here, at))(everywhere, rows.last, first),
    )
