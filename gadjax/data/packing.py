"""Prompt-response sequences as rows of tokens: one sequence per row on the device, or many per row, packed by the host.

Both builders return the same `Packed` structure, so a loss does not depend on how its rows were laid out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gadjax.data.bins import BinSizes, Layout, fit, slots_for
from gadjax.segments import BRANCH

Array = Any  # a jax.Array inside a step, a np.ndarray while the host packs


class Packed(struct.PyTreeNode):
    """Sequences laid out in R rows of L columns, with K response slots per row.

    A leading axis of micro-batches may stand before every field. The S sequences are numbered 0..S-1 in the caller's
    order, over all micro-batches. So an array [S] holds what is known, or computed, about each sequence, whatever the
    layout.
    """

    tokens: Array  # [R, L] int32
    positions: Array  # [R, L] int32, from 0 in every sequence
    segments: Array  # [R, L] int32, 0 = padding; says which tokens attend to each other (`gadjax.segments`)
    source: Array  # [R, K] int32: the column whose hidden state predicts the slot's response token
    target: Array  # [R, K] int32: the slot's response token
    owner: Array  # [R, K] int32: the slot's sequence; S if the slot is empty
    step: Array  # [R, K] int32: the token's place in its response, from 0
    last: Array  # [S] int32: row * L + column of the sequence's last token; -1 if it is in another micro-batch

    @property
    def mask(self) -> Array:
        """[R, K] bool: slots that hold a response token."""
        return self.owner < self.last.shape[-1]


@dataclasses.dataclass(frozen=True)
class RowShape:
    """How a network's sequences become rows, as for `pack`. No choice here changes a number, rounding aside.

    `share`: the prompts of groups, where the network's attention knows them (`gadjax.kernels.choose.shares_prompts`).
    """

    row_length: int
    row_multiple: int = 1
    adaptive: bool = False
    share: bool = False
    whole_groups: bool = False


def padded(sequences: Sequence[Sequence[int] | np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids as rows [S, width], padded on the right with 0, and their lengths [S]; both int32."""
    rows = np.zeros((len(sequences), width), np.int32)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows, np.array([len(sequence) for sequence in sequences], np.int32)


def one_per_row(prompt: Array, prompt_length: Array, response: Array, response_length: Array) -> Packed:
    """Each sequence in a row of its own. No token is moved, so it runs inside a jitted step.

    Args:
      prompt: [S, P] token ids, padded on the right.
      prompt_length: [S].
      response: [S, T] token ids, padded on the right.
      response_length: [S], at least 1.
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


def pack(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    row_length: int,
    micro_batches: int = 1,
    row_multiple: int = 1,
    adaptive: bool = False,
    group: int = 1,
    together: bool = False,
    share: bool = False,
    whole_groups: bool = False,
    minibatches: int | None = None,
) -> Packed:
    """Packs sequences into rows, and the rows into micro-batches of one shape; runs on the host.

    Args:
      prompts, responses: token ids without padding; every response has at least one token.
      row_length: columns of a row, at least as many as the longest sequence has.
      micro_batches: M.
      row_multiple: divides the number of rows, so that they divide over the shards of the batch.
      adaptive: M is a maximum. A batch of short sequences gets fewer micro-batches, each of no more rows than M of
        them have when every sequence, or every whole group, fills a row.
      group: this many consecutive sequences have the same prompt.
      together: a group stays in one micro-batch.
      share: a row holds a prompt once, followed by all its responses in that row (`gadjax.segments`).
      whole_groups: a row has room for a group whose sequences are all as long as they can be.
      minibatches: J equal parts of consecutive sequences, each packed alone and numbered from 0; None for one part.

    Returns:
      `Packed` of numpy arrays with a leading axis M, or with leading axes [J, M]. Rows and slots are rounded up, so
      that few shapes occur.

    Raises:
      ValueError: a sequence is longer than a row, or the sequences do not divide into groups.
    """
    count = minibatches or 1
    if len(prompts) % (count * group):
        raise ValueError(f"{len(prompts)} sequences do not divide into {count} minibatches of groups of {group}")
    size = len(prompts) // count
    runs = [slice(j * size, (j + 1) * size) for j in range(count)]
    sizes = [BinSizes.of(prompts[run], responses[run], group, share) for run in runs]
    for j, run in enumerate(sizes):
        if (longest := int(run.alone.max())) > row_length:
            worst = j * size + int(run.alone.argmax())
            raise ValueError(f"sequence {worst} of {longest} tokens does not fit a row of {row_length}")
    # Choose which sequences go to which row.
    layouts, rows = fit(sizes, row_length, micro_batches, row_multiple, adaptive, together, whole_groups)
    # Choose the number of slots that holds every row's responses.
    held = (
        sum(len(responses[run.start + i]) for i in row)
        for run, layout in zip(runs, layouts, strict=True)
        for part in layout
        for row in part
    )
    shape = rows, row_length, slots_for(max(held), row_length, sizes)
    # Write the tokens into their rows.
    packed = [
        _lay_out(prompts[run], responses[run], layout, shape, group if share else 1)
        for run, layout in zip(runs, layouts, strict=True)
    ]
    return packed[0] if minibatches is None else jax.tree.map(lambda *leaves: np.stack(leaves), *packed)


def _lay_out(prompts: Sequence, responses: Sequence, layout: Layout, shape: tuple[int, int, int], group: int) -> Packed:
    """The layout as arrays [M, ...] of `shape`: rows, columns and slots.

    Up to `group` consecutive sequences share their prompt if they are in one row.
    """
    (rows, row_length, slots), parts, count = shape, len(layout), len(prompts)
    wide, narrow = (parts, rows, row_length), (parts, rows, slots)
    tokens, positions, segments = (np.zeros(wide, np.int32) for _ in range(3))
    source, target, step = (np.zeros(narrow, np.int32) for _ in range(3))
    owner = np.full(narrow, count, np.int32)
    last = np.full((parts, count), -1, np.int32)
    for m, part in enumerate(layout):
        for r, row in enumerate(part):
            column = slot = 0
            for segment, (_, together) in enumerate(itertools.groupby(sorted(row), lambda i: i // group), start=1):
                sequences = list(together)
                prompt = prompts[sequences[0]]
                held = slice(column, column + len(prompt))
                tokens[m, r, held], segments[m, r, held] = prompt, segment
                positions[m, r, held] = np.arange(len(prompt))
                prompt_end = column = held.stop
                for branch, sequence in enumerate(sequences, start=1):
                    response = responses[sequence]
                    length = len(response)
                    held = slice(column, column + length)
                    tokens[m, r, held] = response
                    positions[m, r, held] = len(prompt) + np.arange(length)
                    segments[m, r, held] = segment + branch * BRANCH * (len(sequences) > 1)
                    held = slice(slot, slot + length)
                    source[m, r, held] = np.arange(column - 1, column + length - 1)
                    source[m, r, slot] = prompt_end - 1  # the first token follows the prompt, maybe many columns back
                    target[m, r, held], owner[m, r, held], step[m, r, held] = response, sequence, np.arange(length)
                    column, slot = column + length, slot + length
                    last[m, sequence] = r * row_length + column - 1
    return Packed(tokens, positions, segments, source, target, owner, step, last)
