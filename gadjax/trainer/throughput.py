"""The speed of a step: tokens a second, and the share of the devices' arithmetic that the model itself needed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.monitoring
import numpy as np

from gadjax.data.packing import Packed
from gadjax.models.model import Model
from gadjax.parallel.chips import chip_of
from gadjax.rollout.sampler import Samples

# The cost of a pass in forward passes. A backward pass costs two, or one where the weights have no gradient.
SCORING, TRAINING, TRAINING_ADAPTERS = 1, 3, 2


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one phase of a step.

    Attributes:
      flops: floating-point operations that the model needs, without padding and without computing anything twice.
      tokens: tokens that went through the network.
      places: places of the arrays that held them, padding included.
    """

    flops: float
    tokens: int
    places: int


def of_rows(model: Model, rows: Packed, passes: int) -> Work:
    """The work of packed rows that go through a network.

    The adapters' own operations are not counted, nor gradients of weights that adapters leave as they are.

    Args:
      model: the network.
      rows: host rows.
      passes: the cost in forward passes: `SCORING`, `TRAINING` or `TRAINING_ADAPTERS`, times the number of passes.
    """
    held = np.asarray(rows.segments) > 0
    seen = np.asarray(rows.positions, np.int64)[held] + 1
    tokens, window = int(held.sum()), model.config.sliding_window
    attended = [int(pairs.sum()) for pairs in (seen, seen if window is None else np.minimum(seen, window))]
    predicted = int(np.asarray(rows.mask).sum()) if model.head == "lm" else 0
    flops = model.config.forward_flops(tokens, attended[0], predicted, attended[1])
    return Work(passes * flops, tokens, held.size)


def of_rollout(model: Model, prompt_length: np.ndarray, samples: Samples) -> Work:
    """The work of a rollout: each prompt [B] is read once, and each token of its samples but the last."""
    prompts, lengths = prompt_length.astype(np.int64), np.asarray(samples.lengths, np.int64)
    read = lengths - 1

    def pairs(window: int | None) -> int:
        """Pairs of a token and a token that it sees: of the prompts once, and of each sample beyond its prompt."""
        to = lambda length: _triangle(length, window)  # noqa: E731
        return int(to(prompts).sum() + (to(prompts[:, None] + read) - to(prompts)[:, None]).sum())

    tokens = int(prompts.sum() + read.sum())
    attended = pairs(None), pairs(model.config.sliding_window)
    flops = model.config.forward_flops(tokens, attended[0], int(lengths.sum()), attended[1])
    return Work(flops, tokens, tokens)


def _triangle(length: np.ndarray, window: int | None) -> np.ndarray:
    """Pairs of a token and a token that it sees, of which it sees `window` at most, in sequences of these lengths."""
    beyond = np.maximum(length - window, 0) if window is not None else np.zeros_like(length)
    return length * (length + 1) // 2 - beyond * (beyond + 1) // 2


def compile_seconds() -> float:
    """Seconds that this process has spent on compiling, or on reading compiled programs, since the first call.

    Where several threads compile at once, the seconds of each count.
    """
    return sum(_compilations())


@functools.cache
def _compilations() -> list[float]:
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations


class Meter:
    """Adds up the work of a step."""

    def __init__(self, devices: Sequence[jax.Device]):
        self._count, self._chip = len(devices), chip_of(devices[0])
        self._updates: list[Work] = []
        self._flops = 0.0

    def rollout(self, work: Work) -> None:
        """Counts a rollout."""
        self._flops += work.flops

    def update(self, work: Work) -> None:
        """Counts an update's work and its padding."""
        self._flops += work.flops
        self._updates.append(work)

    def figures(self, seconds: dict[str, float], sampled: int) -> dict[str, float]:
        """The step's figures; the next step starts from zero.

        Args:
          seconds: the seconds of every phase of the step.
          sampled: tokens of the responses.

        Returns:
          `padding`: the share of padding in the updates' rows. `speed/sampled_tokens_per_second`: in the rollout.
          `speed/trained_tokens_per_second`: in the other phases. `speed/model_tflops_per_device`: over the step.
          `speed/mfu`: the share of the chip's bfloat16 peak, where that is known (`gadjax.parallel.chips.CHIPS`).
        """
        total, tokens = sum(seconds.values()), sum(work.tokens for work in self._updates)
        figures = {"padding": 1.0 - tokens / max(1, sum(work.places for work in self._updates))}
        if "rollout" in seconds:
            figures["speed/sampled_tokens_per_second"] = sampled / seconds["rollout"]
        figures["speed/trained_tokens_per_second"] = tokens / (total - seconds.get("rollout", 0.0))
        rate = self._flops / (total * self._count)
        figures["speed/model_tflops_per_device"] = rate / 1e12
        if self._chip:
            figures["speed/mfu"] = rate / self._chip.flops
        self._flops, self._updates = 0.0, []
        return figures
