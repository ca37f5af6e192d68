"""The sequences that each update reads, in the order that the losses expect, and two ways to lay them out as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed, RowShape, one_per_row, pack
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Samples

Array = Any  # a jax.Array inside a step, a np.ndarray on the host
Batch = Mapping[str, Array]  # prompt [B, P], prompt_length [B], teacher [B, T], teacher_length [B], row [B]


class Sequences(NamedTuple):
    """n responses to each of B prompts, right-padded."""

    prompt: Array  # [B, P]
    prompt_length: Array  # [B]
    response: Array  # [B, n, T]
    response_length: Array  # [B, n]


class Layout(Protocol):
    """A way to lay sequences out as rows. It numbers them as they come: response i of prompt b is b * n + i."""

    def __call__(
        self, sequences: Sequences, *, micro_batches: int, minibatches: int | None = None, together: bool = False
    ) -> Packed:
        """Rows [M, ...] in so many micro-batches; with J minibatches [J, M, ...], each numbered from 0.

        `together`: the responses to a prompt are in one micro-batch.
        """


def teacher_rows(method: Method, batch: Batch, lay_out: Layout) -> Packed:
    """The teacher's responses: [M, ...] micro-batches of the generator's update."""
    sequences = _sequences(batch, batch["teacher"][:, None], batch["teacher_length"][:, None])
    return lay_out(sequences, micro_batches=method.generator_micro_batches)


def policy_rows(method: Method, batch: Batch, samples: Samples, lay_out: Layout) -> tuple[Packed, Array]:
    """All B * N samples, [J, M, ...] minibatches of micro-batches, and the sampler's log-probs, [J, S, T]."""
    sequences = _sequences(batch, samples.tokens, samples.lengths)
    parts: Any = {"minibatches": method.ppo_minibatches, "micro_batches": method.generator_micro_batches}
    sampled = samples.logprobs.reshape(method.ppo_minibatches, -1, samples.logprobs.shape[-1])
    return lay_out(sequences, **parts), sampled


def group_rows(method: Method, batch: Batch, tokens: Array, lengths: Array, lay_out: Layout) -> Packed:
    """Each prompt's group, the teacher's response first and then its samples: [M, ...] micro-batches.

    Args:
      method: the settings.
      batch: G prompts with the teacher's responses.
      tokens: [G, N, T] samples; T may differ from the teacher's.
      lengths: [G, N] their tokens.
      lay_out: makes the rows.
    """
    xp, teacher = tokens.__array_namespace__(), batch["teacher"][:, None]
    width = max(teacher.shape[-1], tokens.shape[-1])
    widen = lambda x: xp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))  # noqa: E731
    responses = xp.concatenate([widen(teacher), widen(tokens)], axis=1)
    lengths = xp.concatenate([batch["teacher_length"][:, None], lengths], axis=1)
    sequences = _sequences(batch, responses, lengths)
    return lay_out(sequences, micro_batches=method.discriminator_micro_batches, together=True)


def _sequences(batch: Batch, response: Array, response_length: Array) -> Sequences:
    return Sequences(batch["prompt"], batch["prompt_length"], response, response_length)


def one_sequence_a_row(
    sequences: Sequences, *, micro_batches: int, minibatches: int | None = None, together: bool = False
) -> Packed:
    """A `Layout` on the device: each sequence in a row of its own. It moves no token, so it runs inside jit."""
    count = sequences.response.shape[1]
    fields = (
        jnp.repeat(sequences.prompt, count, axis=0),
        jnp.repeat(sequences.prompt_length, count, axis=0),
        *(field.reshape(-1, *field.shape[2:]) for field in sequences[2:]),
    )
    if minibatches is None:
        return _micro_batches(fields, micro_batches)
    fields = tuple(field.reshape(minibatches, -1, *field.shape[1:]) for field in fields)
    return jax.vmap(lambda *fields: _micro_batches(fields, micro_batches))(*fields)


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


@dataclasses.dataclass(frozen=True)
class PackedByHost:
    """A `Layout` on the host: many sequences a row, by `gadjax.data.packing.pack`. It takes numpy arrays."""

    shape: RowShape

    def __call__(
        self, sequences: Sequences, *, micro_batches: int, minibatches: int | None = None, together: bool = False
    ) -> Packed:
        count = sequences.response.shape[1]
        prompts = [ids[:length] for ids, length in zip(sequences.prompt, sequences.prompt_length, strict=True)]
        responses = sequences.response.reshape(-1, sequences.response.shape[-1])
        return pack(
            [prompt for prompt in prompts for _ in range(count)],
            [ids[:length] for ids, length in zip(responses, sequences.response_length.reshape(-1), strict=True)],
            micro_batches=micro_batches,
            minibatches=minibatches,
            group=count,
            together=together,
            **dataclasses.asdict(self.shape),
        )
