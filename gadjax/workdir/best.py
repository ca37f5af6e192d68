"""Which checkpoint of a run is the best, by a figure that is measured on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers as policies

# How good a value of a figure is; more is better. The keys are the choices of `config.checkpoint.best`.
_QUALITY = {
    "nll": lambda value: -value,
    "rouge_l": lambda value: value,
    "two_sample": lambda value: -abs(value - 0.5),  # at 0.5 nobody can tell the student from the teacher
}


class KeepBest(policies.PreservationPolicy):
    """Tells Orbax to keep the checkpoint with the best value of `figure`, which is "" if the run asks for none."""

    def __init__(self, figure: str):
        self.figure = figure
        self._values: dict[int, float] = {}  # by step

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Records the figures that were measured at a checkpoint's step. They replace those of an earlier save."""
        self._values.pop(step, None)
        if self._quality(figures) > -math.inf:
            self._values[step] = figures[self.figure]

    def best(self, steps: Sequence[int]) -> tuple[int, float] | None:
        """The best of these steps and its value, or None if none was measured. The last of equal ones wins."""
        measured = [step for step in steps if step in self._values]
        rank = lambda step: (self._quality({self.figure: self._values[step]}), step)  # noqa: E731
        best = max(measured, key=rank, default=None)
        return None if best is None else (best, self._values[best])

    def improves(self, figures: Mapping[str, float], steps: Sequence[int]) -> bool:
        """Whether these figures are better than those of all these steps."""
        best = self.best(steps)
        return self._quality(figures) > (-math.inf if best is None else self._quality({self.figure: best[1]}))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> list[bool]:
        """Answers Orbax, for each checkpoint (an object with a `step`), whether it stays."""
        best = self.best([info.step for info in checkpoints])
        return [best is not None and info.step == best[0] for info in checkpoints]

    def _quality(self, figures: Mapping[str, float]) -> float:
        """-inf if the figure was not measured, or is not finite."""
        value = figures.get(self.figure)
        return -math.inf if value is None or not math.isfinite(value) else _QUALITY[self.figure](value)
