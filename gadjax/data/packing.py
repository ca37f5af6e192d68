"""Prompt-response sequences as rows of tokens: one sequence a row on the device, or many a row packed by the host.

Both builders give the same `Packed` structure, so a loss neither knows nor cares how its rows were laid out.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray

_SLOT_STEPS = 4  # distinct numbers of response slots, as quarters of a row


@struct.dataclass
class Packed:
    """S sequences laid out in R rows of L columns, with K response slots a row.

    A leading axis of micro-batches may stand before every field. Sequences are numbered 0..S-1 in the caller's order.
    """

    tokens: Array  # [R, L] int32
    positions: Array  # [R, L] int32, from 0 in every sequence
    segments: Array  # [R, L] int32, 0 = padding; a sequence's id differs from its neighbours'
    source: Array  # [R, K] int32: the column whose hidden state predicts the response token of this slot
    target: Array  # [R, K] int32: that response token
    owner: Array  # [R, K] int32: its sequence; S where the slot is empty
    step: Array  # [R, K] int32: its place in the response
    last: Array  # [S] int32: row * L + column of the sequence's last token, where the discriminator reads its score

    @property
    def mask(self) -> Array:
        """[R, K] bool: slots that hold a response token."""
        return self.owner < self.last.shape[-1]


def one_per_row(prompt: Array, prompt_length: Array, response: Array, response_length: Array) -> Packed:
    """Each sequence in a row of its own, in place: no token is moved, so it runs inside a jitted step.

    Args:
      prompt: [S, P], right-padded; prompt_length: [S].
      response: [S, T], right-padded; response_length: [S], at least 1.
    """
    count, width = prompt.shape
    limit = response.shape[1]
    column = jnp.arange(width + limit)
    step = jnp.broadcast_to(jnp.arange(limit), response.shape)
    in_prompt = column < prompt_length[:, None]
    in_response = (column >= width) & (column < width + response_length[:, None])
    positions = jnp.where(column < width, column, prompt_length[:, None] + column - width)
    segments = (in_prompt | in_response).astype(jnp.int32)
    held = step < response_length[:, None]
    return Packed(
        tokens=jnp.concatenate([prompt, response], axis=1),
        positions=positions * segments,
        segments=segments,
        source=jnp.where(step == 0, prompt_length[:, None] - 1, width + step - 1),
        target=response,
        owner=jnp.where(held, jnp.arange(count)[:, None], count),
        step=step,
        last=jnp.arange(count) * (width + limit) + width + response_length - 1,
    )


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most `capacity` (first-fit decreasing: within 11/9 of the optimum)."""
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[index]
        if need > capacity:
            raise ValueError(f"sequence {index} of {need} tokens does not fit a row of {capacity}")
        for place, space in enumerate(free):
            if need <= space:
                bins[place].append(index)
                free[place] -= need
                break
        else:
            bins.append([index])
            free.append(capacity - need)
    return bins


def full_rows(sequences: int, parts: int, row_multiple: int = 1) -> int:
    """Rows of each of so many micro-batches where every sequence fills a row."""
    return -(-(sequences // parts) // row_multiple) * row_multiple


def fewest_parts(lengths: Sequence[int], parts: int, capacity: int, row_multiple: int = 1) -> int:
    """The fewest micro-batches that need no more rows each than `parts` of them do where every sequence fills a row.

    Short sequences share rows: a micro-batch with more of them takes as much memory, and wastes less.

    Args:
      lengths: tokens of the S sequences, in order.
      parts: a divisor of S; the answer divides it.
      capacity, row_multiple: as for `pack`.
    """
    limit = full_rows(len(lengths), parts, row_multiple)
    for fewer in (n for n in range(1, parts) if parts % n == 0):
        size = len(lengths) // fewer
        if sum(lengths) > fewer * limit * capacity:
            continue
        if all(len(first_fit(lengths[m * size : (m + 1) * size], capacity)) <= limit for m in range(fewer)):
            return fewer
    return parts


def round_up(value: int, multiple: int = 1) -> int:
    """The next size in a geometric grid of eight steps an octave that `multiple` divides.

    Few distinct shapes (so few compilations) for at most 1/8 of padding.
    """
    value = max(value, 1)
    quantum = max(1 + (value > 8), 2 ** (value - 1).bit_length() // 16)
    quantum = -(-quantum // multiple) * multiple
    return -(-value // quantum) * quantum


def pack(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    row_length: int,
    micro_batches: int = 1,
    row_multiple: int = 1,
    row_limit: int | None = None,
) -> Packed:
    """Packs S sequences into rows, on the host, in `micro_batches` equal runs of consecutive sequences.

    Args:
      prompts, responses: S token arrays each, without padding; every response has at least one token.
      row_length: columns of a row; at least the longest sequence.
      micro_batches: M, a divisor of S. Micro-batch m holds sequences m*S/M..(m+1)*S/M-1, numbered from 0.
      row_multiple: the number of rows is a multiple of this (the shards of the batch).
      row_limit: rows of a micro-batch that are known to be enough, a multiple of `row_multiple`.

    Returns:
      numpy `Packed` with a leading axis M. Rows (`round_up`) and slots (quarters of a row) are rounded up so that
      shapes recur.
    """
    count, remainder = divmod(len(prompts), micro_batches)
    if remainder:
        raise ValueError(f"{len(prompts)} sequences do not divide into {micro_batches} micro-batches")
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    parts = [range(m * count, (m + 1) * count) for m in range(micro_batches)]
    layouts = [first_fit([lengths[i] for i in part], row_length) for part in parts]
    # Never more than a row a sequence, which is the one shape of a batch of long ones.
    most = full_rows(len(prompts), micro_batches, row_multiple) if row_limit is None else row_limit
    rows = min(round_up(max(map(len, layouts)), row_multiple), most)
    slots = max(
        sum(len(responses[part[i]]) for i in row) for part, layout in zip(parts, layouts, strict=True) for row in layout
    )
    slots = min(round_up(slots, -(-row_length // _SLOT_STEPS)), row_length)

    wide, narrow = (micro_batches, rows, row_length), (micro_batches, rows, slots)
    tokens, positions, segments = (np.zeros(wide, np.int32) for _ in range(3))
    source, target, step = (np.zeros(narrow, np.int32) for _ in range(3))
    owner = np.full(narrow, count, np.int32)
    last = np.zeros((micro_batches, count), np.int32)
    for m, (part, layout) in enumerate(zip(parts, layouts, strict=True)):
        for r, row in enumerate(layout):
            start = slot = 0
            for segment, local in enumerate(row, start=1):
                prompt, response = prompts[part[local]], responses[part[local]]
                first, end = start + len(prompt), start + len(prompt) + len(response)
                tokens[m, r, start:first], tokens[m, r, first:end] = prompt, response
                positions[m, r, start:end] = np.arange(end - start)
                segments[m, r, start:end] = segment
                held = slice(slot, slot + len(response))
                source[m, r, held] = np.arange(first - 1, end - 1)
                target[m, r, held], owner[m, r, held] = response, local
                step[m, r, held] = np.arange(len(response))
                last[m, local] = r * row_length + end - 1
                start, slot = end, held.stop
    return Packed(tokens, positions, segments, source, target, owner, step, last)
