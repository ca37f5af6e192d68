"""Replay for the discriminator: a ring buffer of past groups, each a prompt with the teacher's response and samples."""

from __future__ import annotations

import numpy as np

from gadjax.data.packing import Packed
from gadjax.distill.method import Method
from gadjax.distill.rows import Layout, group_rows

Groups = dict[str, np.ndarray]


def past_groups(share: float, fresh: int) -> int:
    """The number of past groups that make up this share of an update, beside `fresh` new groups."""
    return max(1, round(fresh * share / (1 - share)))


class Replay:
    """The last groups of the run, as plain arrays that a checkpoint can hold.

    Half of each discriminator batch from 4,096 past samples steadied the discriminator in the one public replication
    (`docs/algorithm.md`, section 7). Metrics and rewards are never computed on replayed groups.
    """

    def __init__(self, groups: int):
        self.groups = groups
        self.arrays: Groups = {}
        self.added = 0

    def add(self, new: Groups) -> None:
        """Stores groups, over the oldest; a ring of no groups stores nothing.

        `new`: arrays with a leading axis of groups, always of the same shapes.
        """
        if not self.groups:
            return
        if not self.arrays:
            self.arrays = {name: np.zeros((self.groups, *value.shape[1:]), value.dtype) for name, value in new.items()}
        count = len(next(iter(new.values())))
        places = (self.added + np.arange(count)) % self.groups
        for name, value in new.items():
            self.arrays[name][places] = value
        self.added += count

    def draw(self, count: int, seed: tuple[int, ...]) -> Groups | None:
        """`count` stored groups drawn with replacement, the same for the same seed; None while there are none."""
        held = min(self.added, self.groups)
        if not held:
            return None
        chosen = np.random.default_rng(seed).integers(held, size=count)
        return {name: value[chosen] for name, value in self.arrays.items()}


def pack_groups(
    method: Method, fresh: Groups, replayed: Groups | None, replay_share: float, lay_out: Layout
) -> tuple[Packed, np.ndarray]:
    """Rows [M, ...] of new groups and, after them, of replayed ones; and the weight of each group [G].

    Args:
      method: the settings of the step.
      fresh: prompt [B, P], prompt_length [B], teacher [B, T], teacher_length [B], tokens [B, N, T] and lengths [B, N].
      replayed: the same fields of R past groups, or None.
      replay_share: the weight of the past groups together; the new ones have the rest.
      lay_out: makes the rows.
    """
    count = len(fresh["prompt"])
    groups, weight = fresh, np.full(count, 1.0 / count, np.float32)
    if replayed is not None:
        past = len(replayed["prompt"])
        weight = np.concatenate([weight * (1 - replay_share), np.full(past, replay_share / past, np.float32)])
        groups = {name: np.concatenate([value, replayed[name]]) for name, value in fresh.items()}
    return group_rows(method, groups, groups["tokens"], groups["lengths"], lay_out), weight
