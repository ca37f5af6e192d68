"""Past groups for the discriminator: a ring of prompts with their teacher's response and samples."""

from __future__ import annotations

import numpy as np

Groups = dict[str, np.ndarray]


def past_groups(share: float, fresh: int) -> int:
    """Past groups that make up a share of an update beside `fresh` new ones."""
    return max(1, round(fresh * share / (1 - share)))


class Replay:
    """Keeps the last groups, as plain arrays that a checkpoint can hold.

    Half of each discriminator batch from 4,096 past samples steadied the discriminator in the one public replication
    (`docs/algorithm.md`, section 7). Metrics and rewards are never of replayed groups.
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
