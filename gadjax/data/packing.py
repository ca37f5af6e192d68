"""Prompt-response sequences as rows of tokens: one sequence a row on the device, or many a row packed by the host.

Both builders give the same `Packed` structure, so a loss neither knows nor cares how its rows were laid out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray

_SLOT_STEPS = 4  # distinct numbers of response slots, as quarters of a row
_ROW_STEPS = 16  # distinct numbers of rows an octave: at most 1/16 of them is there for the shape's sake

Layout = list[list[list[int]]]  # of micro-batches, of rows, of sequences


@struct.dataclass
class Packed:
    """Sequences laid out in R rows of L columns, with K response slots a row.

    A leading axis of micro-batches may stand before every field. Sequences are numbered 0..S-1 in the caller's order
    over all micro-batches, whichever of them holds them, so that what is known of a sequence, and what is found out,
    are arrays [S] without another order.
    """

    tokens: Array  # [R, L] int32
    positions: Array  # [R, L] int32, from 0 in every sequence
    segments: Array  # [R, L] int32, 0 = padding; a sequence's id differs from its neighbours'
    source: Array  # [R, K] int32: the column whose hidden state predicts the response token of this slot
    target: Array  # [R, K] int32: that response token
    owner: Array  # [R, K] int32: its sequence; S where the slot is empty
    step: Array  # [R, K] int32: its place in the response
    last: Array  # [S] int32: row * L + column of the sequence's last token; -1 where it is in another micro-batch

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


def round_up(value: int, multiple: int = 1, steps: int = 8) -> int:
    """The next size in a geometric grid of so many steps an octave that `multiple` divides.

    Few distinct shapes (so few compilations) for at most 1 / `steps` of padding.
    """
    value = max(value, 1)
    quantum = max(1, 2 ** (value - 1).bit_length() // (2 * steps))
    return _multiple(value, _multiple(quantum, multiple))


def full_rows(sequences: int, parts: int, row_multiple: int = 1, group: int = 1) -> int:
    """Rows of each of so many micro-batches where every sequence fills a row.

    Args:
      sequences: S, a multiple of `group`, those of which stay together.
      row_multiple: divides the rows.
    """
    return _multiple(-(-(sequences // group) // parts) * group, row_multiple)


def pack(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    row_length: int,
    micro_batches: int = 1,
    row_multiple: int = 1,
    group: int = 1,
    adaptive: bool = False,
) -> Packed:
    """Packs sequences into rows, on the host, and the rows into micro-batches of one shape.

    Args:
      prompts, responses: token arrays without padding; every response has at least one token.
      row_length: columns of a row; at least the longest sequence.
      micro_batches: M.
      row_multiple: the number of rows is a multiple of this (the shards of the batch).
      group: so many consecutive sequences stay in one micro-batch.
      adaptive: M is the most of micro-batches. A batch of short sequences gets fewer, of no more rows each than M of
        them have where every sequence fills a row.

    Returns:
      numpy `Packed` with a leading axis M. Rows and slots (quarters of a row) are rounded up so that shapes recur.

    Raises:
      ValueError: a sequence is longer than a row, or the sequences do not divide into groups.
    """
    options = dict(row_length=row_length, micro_batches=micro_batches, row_multiple=row_multiple, adaptive=adaptive)
    rows = pack_minibatches(prompts, responses, minibatches=1, group=group, **options)
    return jax.tree.map(lambda leaf: leaf[0], rows)


def pack_minibatches(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    minibatches: int,
    row_length: int,
    micro_batches: int = 1,
    row_multiple: int = 1,
    group: int = 1,
    adaptive: bool = False,
) -> Packed:
    """`pack` of J equal runs of consecutive sequences, to one shape: [J, M, ...], numbered from 0 in each run."""
    if len(prompts) % (minibatches * group):
        raise ValueError(f"{len(prompts)} sequences do not divide into {minibatches} runs of groups of {group}")
    lengths = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
    if lengths.max() > row_length:
        worst = int(lengths.argmax())
        raise ValueError(f"sequence {worst} of {lengths[worst]} tokens does not fit a row of {row_length}")
    size = len(prompts) // minibatches
    each = lengths.reshape(minibatches, size)
    limit = full_rows(size, micro_batches, row_multiple, group)
    least = -(-int(each.sum(axis=1).max()) // row_length)
    for parts, rows in _shapes(least, micro_batches, limit, row_multiple, adaptive):
        layouts = [_assign(run.reshape(-1, group), parts, rows, row_length) for run in each]
        if None not in layouts:
            break
    answers = [len(response) for response in responses]
    held = (sum(answers[j * size + i] for i in row) for j, run in enumerate(layouts) for part in run for row in part)
    slots = min(_multiple(max(held), -(-row_length // _SLOT_STEPS)), row_length)
    runs = [slice(j * size, (j + 1) * size) for j in range(minibatches)]
    packed = [
        _lay_out(prompts[run], responses[run], layout, (rows, row_length, slots))
        for run, layout in zip(runs, layouts, strict=True)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)


def _shapes(least: int, parts: int, limit: int, row_multiple: int, adaptive: bool) -> Iterator[tuple[int, int]]:
    """Micro-batches and rows of each, least padding first: from `least` rows in all to `parts` times `limit`.

    The totals are those of a geometric grid; of each, an adaptive batch tries every number of rows a micro-batch that
    is more than half of the limit, for groups fit into some and not into others.
    """
    before, total = least - 1, round_up(least, row_multiple, _ROW_STEPS)
    while total < parts * limit:
        if not adaptive:
            shapes = [(parts, _multiple(-(-total // parts), row_multiple))]
        elif total <= limit:
            shapes = [(1, total)]
        else:
            rows = range(limit, limit // 2, -row_multiple)
            shapes = [(total // each, each) for each in rows if before < total // each * each]
            shapes.sort(key=lambda shape: shape[0] * shape[1])
        yield from (shape for shape in shapes if shape[0] <= parts and shape[1] <= limit)
        before, total = total, round_up(total + 1, row_multiple, _ROW_STEPS)
    yield parts, limit


def _assign(lengths: np.ndarray, parts: int, rows: int, capacity: int) -> Layout | None:
    """Groups to micro-batches, and their sequences to rows, first fit in decreasing order; None if they do not fit.

    `lengths`: [groups, sequences of one].
    """
    size = lengths.shape[1]
    layout: Layout = [[[] for _ in range(rows)] for _ in range(parts)]
    free = np.full((parts, rows), capacity)
    totals, within = lengths.sum(axis=1), np.argsort(-lengths, axis=1, kind="stable")
    for g in np.argsort(-totals, kind="stable"):
        needs = lengths[g, within[g]]
        for m in np.flatnonzero((free.max(axis=1) >= needs[0]) & (free.sum(axis=1) >= totals[g])):
            places = _first_fit(needs, free[m])
            if places is not None:
                break
        else:
            return None
        for i, row in zip(within[g], places, strict=True):
            free[m, row] -= lengths[g, i]
            layout[m][row].append(int(g) * size + int(i))
    return layout


def _first_fit(needs: np.ndarray, free: np.ndarray) -> list[int] | None:
    """Rows that take sequences one after another, or None if one finds no room."""
    free, places = free.copy(), []
    for need in needs:
        row = int(np.argmax(free >= need))
        if free[row] < need:
            return None
        free[row] -= need
        places.append(row)
    return places


def _lay_out(prompts: Sequence, responses: Sequence, layout: Layout, shape: tuple[int, int, int]) -> Packed:
    """The rows of a layout: [M, ...] of `shape`, (rows, columns, slots)."""
    (rows, row_length, slots), parts, count = shape, len(layout), len(prompts)
    wide, narrow = (parts, rows, row_length), (parts, rows, slots)
    tokens, positions, segments = (np.zeros(wide, np.int32) for _ in range(3))
    source, target, step = (np.zeros(narrow, np.int32) for _ in range(3))
    owner = np.full(narrow, count, np.int32)
    last = np.full((parts, count), -1, np.int32)
    for m, part in enumerate(layout):
        for r, row in enumerate(part):
            start = slot = 0
            for segment, sequence in enumerate(row, start=1):
                prompt, response = prompts[sequence], responses[sequence]
                first, end = start + len(prompt), start + len(prompt) + len(response)
                tokens[m, r, start:first], tokens[m, r, first:end] = prompt, response
                positions[m, r, start:end] = np.arange(end - start)
                segments[m, r, start:end] = segment
                held = slice(slot, slot + len(response))
                source[m, r, held] = np.arange(first - 1, end - 1)
                target[m, r, held], owner[m, r, held] = response, sequence
                step[m, r, held] = np.arange(len(response))
                last[m, sequence] = r * row_length + end - 1
                start, slot = end, held.stop
    return Packed(tokens, positions, segments, source, target, owner, step, last)


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of
