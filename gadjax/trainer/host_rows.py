"""Rows for the trainer: many sequences a row, packed by the host between sampling and the updates.

The counterparts of `gadjax.distill.rows`, for the same updates and with the same order of sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from gadjax.data.packing import Packed, RowShape, pack
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Samples

HostBatch = Mapping[str, np.ndarray]


def teacher_rows(method: Method, batch: HostBatch, shape: RowShape) -> Packed:
    """The batch's prompts with the teacher's responses: [M, ...] micro-batches of the generator's update."""
    prompts, answers = (_trim(batch[name], batch[f"{name}_length"]) for name in ("prompt", "teacher"))
    return pack(prompts, answers, micro_batches=method.generator_micro_batches, **dataclasses.asdict(shape))


def policy_rows(method: Method, batch: HostBatch, samples: Samples, shape: RowShape) -> tuple[Packed, np.ndarray]:
    """All B * N samples, [J, M, ...] minibatches of micro-batches, and the sampler's log-probs, [J, S, T]."""
    prompts = _trim(batch["prompt"], batch["prompt_length"])
    prompts = [prompt for prompt in prompts for _ in range(method.num_samples)]
    responses = _trim(_flat(samples.tokens), _flat(samples.lengths))
    parts = dict(minibatches=method.ppo_minibatches, micro_batches=method.generator_micro_batches)
    parts |= dict(group=method.num_samples)
    sampled = samples.logprobs.reshape(method.ppo_minibatches, -1, samples.logprobs.shape[-1])
    return pack(prompts, responses, **parts, **dataclasses.asdict(shape)), sampled


def group_rows(
    method: Method,
    fresh: HostBatch,
    replayed: HostBatch | None,
    replay_share: float,
    shape: RowShape,
) -> tuple[Packed, np.ndarray]:
    """Groups of a teacher's response and its samples, fresh ones first: [M, ...], and their weights [G].

    Args:
      fresh: prompt [B, P], prompt_length [B], teacher [B, T], teacher_length [B], tokens [B, N, T], lengths [B, N].
      replayed: the same fields of R past groups, or None.
      replay_share: the weight of the past groups together; the fresh ones have the rest.
    """
    count = len(fresh["prompt"])
    weight = np.full(count, 1.0 / count, np.float32)
    pieces = [fresh]
    if replayed is not None:
        past = len(replayed["prompt"])
        weight = np.concatenate([weight * (1 - replay_share), np.full(past, replay_share / past, np.float32)])
        pieces.append(replayed)
    prompts, responses = [], []
    for part in pieces:
        for b, prompt in enumerate(_trim(part["prompt"], part["prompt_length"])):
            prompts += [prompt] * (1 + method.num_samples)
            responses.append(part["teacher"][b, : part["teacher_length"][b]])
            responses += _trim(part["tokens"][b], part["lengths"][b])
    parts = dict(micro_batches=method.discriminator_micro_batches, group=1 + method.num_samples, together=True)
    return pack(prompts, responses, **parts, **dataclasses.asdict(shape)), weight


def _flat(grouped: np.ndarray) -> np.ndarray:
    return grouped.reshape(-1, *grouped.shape[2:])


def _trim(tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]
