"""Bin packing: groups of sequences into micro-batches, and sequences into rows, with little padding and few shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Layout = list[list[list[int]]]  # of micro-batches, of rows, of sequences

_ROW_STEPS = 16  # distinct numbers of rows an octave: at most 1/16 of them is there for the shape's sake
_SLOT_STEPS = 8  # the same of response slots
_LEAST_SLOTS = 16  # of which all numbers of slots are multiples
_FEW_TOKENS = 2**14  # in an update of no more, fewer steps: it would compile for longer than they save


@dataclasses.dataclass(frozen=True)
class BinSizes:
    """Tokens of a run's groups: of their prompts [G] where these are shared, else 0, and of what follows [G, size]."""

    prompts: np.ndarray
    needs: np.ndarray

    @classmethod
    def of(cls, prompts: Sequence, responses: Sequence, group: int, share: bool) -> BinSizes:
        """Of token arrays, `group` consecutive ones with one prompt."""
        asked = np.array([len(prompt) for prompt in prompts]).reshape(-1, group)
        answers = np.array([len(response) for response in responses]).reshape(-1, group)
        return cls(asked[:, 0], answers) if share else cls(0 * asked[:, 0], asked + answers)

    @property
    def alone(self) -> np.ndarray:
        """Columns of each sequence in a row of its own."""
        return self.prompts[:, None] + self.needs

    @property
    def totals(self) -> np.ndarray:
        """Columns of each group, in one row."""
        return self.prompts + self.needs.sum(axis=1)


def fit(
    runs: Sequence[BinSizes],
    row_length: int,
    *,
    micro_batches: int,
    row_multiple: int = 1,
    adaptive: bool = False,
    together: bool = False,
    whole_groups: bool = False,
) -> tuple[list[Layout], int]:
    """A layout for each run, all of one shape, and rows of a micro-batch; the arguments are those of `packing.pack`."""
    sequences, group = runs[0].needs.size, runs[0].needs.shape[1]
    units, at_least = (sequences // group, 1) if whole_groups else (sequences, group if together else 1)
    limit = full_rows(units, micro_batches, row_multiple, at_least)
    tokens = _tokens(runs)
    steps = _ROW_STEPS if tokens > _FEW_TOKENS else _ROW_STEPS // 4
    grid = functools.partial(round_up, multiple=row_multiple, steps=steps)
    for parts, rows in _shapes(-(-tokens // row_length), micro_batches, limit, row_multiple, adaptive, grid):
        layouts = [_assign(run, parts, rows, row_length, together) for run in runs]
        if None not in layouts:
            return layouts, rows
    raise AssertionError("where every sequence, or every whole group, has a row, all fit")


def full_rows(sequences: int, parts: int, row_multiple: int = 1, group: int = 1) -> int:
    """Rows of each of so many micro-batches where every sequence, or every whole group, fills a row.

    Args:
      sequences: their number, or that of the groups; a multiple of `group`, those of which stay together.
      row_multiple: divides the rows.
    """
    return multiple_of(-(-(sequences // group) // parts) * group, row_multiple)


def slots_for(held: int, row_length: int, runs: Sequence[BinSizes]) -> int:
    """Response slots of a row, where none has more than `held` response tokens; in a small update quarters of a row."""
    small = _tokens(runs) <= _FEW_TOKENS
    slots = multiple_of(held, -(-row_length // 4)) if small else round_up(held, _LEAST_SLOTS, _SLOT_STEPS)
    return min(slots, row_length)


def _tokens(runs: Sequence[BinSizes]) -> int:
    return max(int(run.totals.sum()) for run in runs)


def round_up(value: int, multiple: int = 1, steps: int = 8) -> int:
    """The next size in a geometric grid of so many steps an octave that `multiple` divides.

    Few distinct shapes (so few compilations) for at most 1 / `steps` of padding.
    """
    value = max(value, 1)
    quantum = max(1, 2 ** (value - 1).bit_length() // (2 * steps))
    return multiple_of(value, multiple_of(quantum, multiple))


def _shapes(
    least: int, parts: int, limit: int, row_multiple: int, adaptive: bool, grid: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    """Micro-batches and rows of each, least padding first: from `least` rows in all to `parts` times `limit`.

    The totals are those of the grid, which rounds up to them; of each, an adaptive batch tries every number of rows a
    micro-batch that is more than half of the limit, for groups fit into some and not into others.
    """
    before, total = least - 1, grid(least)
    while total < parts * limit:
        if not adaptive:
            shapes = [(parts, multiple_of(-(-total // parts), row_multiple))]
        elif total <= limit:
            shapes = [(1, total)]
        else:
            rows = range(limit, limit // 2, -row_multiple)
            shapes = [(total // each, each) for each in rows if before < total // each * each]
            shapes.sort(key=lambda shape: shape[0] * shape[1])
        yield from (shape for shape in shapes if shape[0] <= parts and shape[1] <= limit)
        before, total = total, grid(total + 1)
    yield parts, limit


def _assign(sizes: BinSizes, parts: int, rows: int, capacity: int, together: bool) -> Layout | None:
    """Groups to micro-batches, and their sequences to rows, first fit in decreasing order; None if they do not fit."""
    if not together:  # any row will do: all micro-batches are one
        layout = _assign(sizes, 1, parts * rows, capacity, together=True)
        return layout and [layout[0][m * rows : (m + 1) * rows] for m in range(parts)]
    size = sizes.needs.shape[1]
    layout = [[[] for _ in range(rows)] for _ in range(parts)]
    free = np.full((parts, rows), capacity)
    totals, within = sizes.totals, np.argsort(-sizes.needs, axis=1, kind="stable")
    for g in np.argsort(-totals, kind="stable"):
        prompt, needs = sizes.prompts[g], sizes.needs[g, within[g]]
        for m in np.flatnonzero((free.max(axis=1) >= prompt + needs[0]) & (free.sum(axis=1) >= totals[g])):
            found = _first_fit(prompt, needs, free[m])
            if found is not None:
                break
        else:
            return None
        places, free[m] = found
        for i, row in zip(within[g], places, strict=True):
            layout[m][row].append(int(g) * size + int(i))
    return layout


def _first_fit(prompt: int, needs: np.ndarray, free: np.ndarray) -> tuple[list[int], np.ndarray] | None:
    """Rows that take a group's sequences one after another, and what is free then, or None if one finds no room.

    Rows that have the prompt come before those that would need it too.
    """
    free, places = free.copy(), []
    for need in needs:
        row = next((row for row in dict.fromkeys(places) if free[row] >= need), None) if prompt else None
        if row is None:
            row = int(np.argmax(free >= prompt + need))
            if free[row] < prompt + need:
                return None
            free[row] -= prompt
        free[row] -= need
        places.append(row)
    return places, free


def multiple_of(value: int, of: int) -> int:
    """`value`, rounded up to a multiple."""
    return -(-value // of) * of
