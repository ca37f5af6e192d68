"""Rows for the trainer: many sequences a row, packed by the host between sampling and the updates.

The counterparts of `gadjax.distill.rows`, for the same updates and with the same order of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from gadjax.data.packing import Packed, pack
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Samples

HostBatch = Mapping[str, np.ndarray]


def teacher_rows(method: Method, batch: HostBatch, *, row_length: int, row_multiple: int) -> Packed:
    """The batch's prompts with the teacher's responses: [M, ...] micro-batches of the generator's update."""
    return pack(
        _trim(batch["prompt"], batch["prompt_length"]),
        _trim(batch["teacher"], batch["teacher_length"]),
        row_length=row_length,
        micro_batches=method.generator_micro_batches,
        row_multiple=row_multiple,
    )


def policy_rows(
    method: Method, batch: HostBatch, samples: Samples, *, row_length: int, row_multiple: int
) -> tuple[Packed, np.ndarray]:
    """All B * N samples, [J, M, ...] minibatches of micro-batches, and the sampler's log-probs, [J, M, S, T]."""
    prompts = _trim(batch["prompt"], batch["prompt_length"])
    parts = method.ppo_minibatches, method.generator_micro_batches
    rows = pack(
        [prompt for prompt in prompts for _ in range(method.num_samples)],
        _trim(_flat(samples.tokens), _flat(samples.lengths)),
        row_length=row_length,
        micro_batches=parts[0] * parts[1],
        row_multiple=row_multiple,
    )
    rows = jax.tree.map(lambda leaf: leaf.reshape(*parts, *leaf.shape[1:]), rows)
    return rows, samples.logprobs.reshape(*parts, -1, samples.logprobs.shape[-1])


def group_rows(
    method: Method,
    fresh: HostBatch,
    replayed: HostBatch | None,
    replay_share: float,
    *,
    row_length: int,
    row_multiple: int,
) -> tuple[Packed, np.ndarray]:
    """Groups of a teacher's response and its samples, fresh ones first: [M, ...], and their weights [M, G].

    Args:
      fresh: prompt [B, P], prompt_length [B], teacher [B, T], teacher_length [B], tokens [B, N, T], lengths [B, N].
      replayed: the same fields of R past groups, or None.
      replay_share: the weight of the past groups together; the fresh ones have the rest.
    """
    count = len(fresh["prompt"])
    weight = np.full(count, 1.0 / count, np.float32)
    parts = [fresh]
    if replayed is not None:
        past = len(replayed["prompt"])
        weight = np.concatenate([weight * (1 - replay_share), np.full(past, replay_share / past, np.float32)])
        parts.append(replayed)
    prompts, responses = [], []
    for part in parts:
        for b, prompt in enumerate(_trim(part["prompt"], part["prompt_length"])):
            prompts += [prompt] * (1 + method.num_samples)
            responses.append(part["teacher"][b, : part["teacher_length"][b]])
            responses += _trim(part["tokens"][b], part["lengths"][b])
    rows = pack(
        prompts,
        responses,
        row_length=row_length,
        micro_batches=method.discriminator_micro_batches,
        row_multiple=row_multiple,
    )
    return rows, weight.reshape(method.discriminator_micro_batches, -1)


def _flat(grouped: np.ndarray) -> np.ndarray:
    return grouped.reshape(-1, *grouped.shape[2:])


def _trim(tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]
