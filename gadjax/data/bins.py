"""Bin packing of sequences into rows, and of rows into micro-batches, with little padding and few array shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Layout = list[list[list[int]]]  # layout[micro-batch][row]: the numbers of its sequences

_ROW_STEPS = 16  # allowed numbers of rows per octave, so at most 1/16 of the rows is padding
_SLOT_STEPS = 8  # allowed numbers of response slots per octave
_LEAST_SLOTS = 16  # divides every number of response slots
_FEW_TOKENS = 2**14  # updates of no more tokens get fewer shapes: compiling one takes longer than its padding


@dataclasses.dataclass(frozen=True)
class BinSizes:
    """Tokens of one minibatch: G groups of consecutive sequences, a group's sequences having one prompt."""

    prompts: np.ndarray  # [G] tokens of the prompt if a row holds it once for its group; else 0
    needs: np.ndarray  # [G, size] tokens that each sequence adds to a row

    @classmethod
    def of(cls, prompts: Sequence, responses: Sequence, group: int, share: bool) -> BinSizes:
        """The sizes of token arrays in groups of `group`; `share` says whether a row holds a group's prompt once."""
        asked = np.array([len(prompt) for prompt in prompts]).reshape(-1, group)
        answers = np.array([len(response) for response in responses]).reshape(-1, group)
        return cls(asked[:, 0], answers) if share else cls(0 * asked[:, 0], asked + answers)

    @property
    def alone(self) -> np.ndarray:
        """[G, size] columns that each sequence takes in a row of its own."""
        return self.prompts[:, None] + self.needs

    @property
    def totals(self) -> np.ndarray:
        """[G] columns that each group takes in one row."""
        return self.prompts + self.needs.sum(axis=1)


def fit(
    minibatches: Sequence[BinSizes],
    row_length: int,
    micro_batches: int,
    row_multiple: int,
    adaptive: bool,
    together: bool,
    whole_groups: bool,
) -> tuple[list[Layout], int]:
    """A layout for each minibatch, all of one shape, and the rows of a micro-batch; arguments as for `packing.pack`."""
    sequences, group = minibatches[0].needs.size, minibatches[0].needs.shape[1]
    units, at_least = (sequences // group, 1) if whole_groups else (sequences, group if together else 1)
    limit = full_rows(units, micro_batches, row_multiple, at_least)
    tokens = _tokens(minibatches)
    steps = _ROW_STEPS if tokens > _FEW_TOKENS else _ROW_STEPS // 4
    grid = functools.partial(round_up, multiple=row_multiple, steps=steps)
    for parts, rows in _shapes(-(-tokens // row_length), micro_batches, limit, row_multiple, adaptive, grid):
        found = [_assign(sizes, parts, rows, row_length, together) for sizes in minibatches]
        layouts = [layout for layout in found if layout is not None]
        if len(layouts) == len(found):
            return layouts, rows
    raise AssertionError("the largest shape has a row for every sequence, or for every whole group")


def full_rows(sequences: int, parts: int, row_multiple: int = 1, group: int = 1) -> int:
    """Rows of a micro-batch if every sequence fills a row.

    Args:
      sequences: number of sequences, or of whole groups that fill a row each.
      parts: number of micro-batches.
      row_multiple: divides the number of rows.
      group: this many sequences stay in one micro-batch; divides `sequences`.
    """
    return multiple_of(-(-(sequences // group) // parts) * group, row_multiple)


def slots_for(held: int, row_length: int, minibatches: Sequence[BinSizes]) -> int:
    """Response slots of a row, if no row holds more than `held` response tokens."""
    small = _tokens(minibatches) <= _FEW_TOKENS
    slots = multiple_of(held, -(-row_length // 4)) if small else round_up(held, _LEAST_SLOTS, _SLOT_STEPS)
    return min(slots, row_length)


def _tokens(minibatches: Sequence[BinSizes]) -> int:
    return max(int(sizes.totals.sum()) for sizes in minibatches)


def round_up(value: int, multiple: int = 1, steps: int = 8) -> int:
    """`value` rounded up to a multiple of `multiple` in a geometric grid of `steps` sizes per octave.

    So few shapes are compiled, for at most 1 / `steps` of padding.
    """
    value = max(value, 1)
    quantum = max(1, 2 ** (value - 1).bit_length() // (2 * steps))
    return multiple_of(value, multiple_of(quantum, multiple))


def multiple_of(value: int, of: int) -> int:
    """`value` rounded up to a multiple of `of`."""
    return -(-value // of) * of


def _shapes(
    least: int, parts: int, limit: int, row_multiple: int, adaptive: bool, grid: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    """Numbers of micro-batches and of rows in each, the least padding first, up to `parts` times `limit`.

    The total number of rows starts at `least` and is rounded up by `grid`. An adaptive batch splits each total in every
    way that leaves more than half of `limit` rows to a micro-batch: groups may fit in one way and not in another.
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
    """A layout in `parts` micro-batches of `rows` rows, by first fit in decreasing order; None if not all fit."""
    if not together:  # all rows serve all sequences: fill one large micro-batch, then cut it
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
    """A row for each of a group's sequences, and the columns that stay free; None if one finds no room.

    A row that already holds the group's prompt comes before a row that would need it too.
    """
    free = free.copy()
    places: list[int] = []
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
