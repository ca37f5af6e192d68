"""Rows for the trainer: many sequences a row, packed by the host between sampling and the updates.

The counterparts of `gadjax.distill.rows`, for the same updates and with the same order of sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from gadjax.data.packing import Packed, fewest_parts, full_rows, pack
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Samples

HostBatch = Mapping[str, np.ndarray]
Sequences = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class RowShape:
    """How sequences become rows.

    Attributes:
      row_length, row_multiple: as for `pack`.
      adaptive: whether a batch of short sequences may have fewer micro-batches than the method says, of no more rows
        each. They change nothing but memory and padding.
    """

    row_length: int
    row_multiple: int = 1
    adaptive: bool = False

    def pack(
        self, most: int, prompts: Sequences, responses: Sequences, minibatches: int = 1
    ) -> tuple[Packed, tuple[int, int]]:
        """Rows with a leading axis of all micro-batches, and how many: (minibatches, of each, `most` or fewer)."""
        multiple, size = self.row_multiple, len(prompts) // minibatches
        parts = most
        if self.adaptive:
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
            each = (lengths[start : start + size] for start in range(0, len(lengths), size))
            parts = max(fewest_parts(part, most, self.row_length, multiple) for part in each)
        rows = pack(
            prompts,
            responses,
            row_length=self.row_length,
            micro_batches=minibatches * parts,
            row_multiple=multiple,
            row_limit=full_rows(size, most, multiple),
        )
        return rows, (minibatches, parts)


def teacher_rows(method: Method, batch: HostBatch, shape: RowShape) -> Packed:
    """The batch's prompts with the teacher's responses: [M, ...] micro-batches of the generator's update."""
    prompts, answers = (_trim(batch[name], batch[f"{name}_length"]) for name in ("prompt", "teacher"))
    return shape.pack(method.generator_micro_batches, prompts, answers)[0]


def policy_rows(method: Method, batch: HostBatch, samples: Samples, shape: RowShape) -> tuple[Packed, np.ndarray]:
    """All B * N samples, [J, M, ...] minibatches of micro-batches, and the sampler's log-probs, [J, M, S, T]."""
    prompts = _trim(batch["prompt"], batch["prompt_length"])
    prompts = [prompt for prompt in prompts for _ in range(method.num_samples)]
    responses = _trim(_flat(samples.tokens), _flat(samples.lengths))
    rows, parts = shape.pack(method.generator_micro_batches, prompts, responses, method.ppo_minibatches)
    rows = jax.tree.map(lambda leaf: leaf.reshape(*parts, *leaf.shape[1:]), rows)
    return rows, samples.logprobs.reshape(*parts, -1, samples.logprobs.shape[-1])


def group_rows(
    method: Method,
    fresh: HostBatch,
    replayed: HostBatch | None,
    replay_share: float,
    shape: RowShape,
) -> tuple[Packed, np.ndarray]:
    """Groups of a teacher's response and its samples, fresh ones first: [M, ...], and their weights [M, G].

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
    rows, (_, parts) = shape.pack(method.discriminator_micro_batches, prompts, responses)
    return rows, weight.reshape(parts, -1)


def _flat(grouped: np.ndarray) -> np.ndarray:
    return grouped.reshape(-1, *grouped.shape[2:])


def _trim(tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]
