"""Random batches of a GAD step as plain lists, which both sides are given."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """A step's sizes.

    Attributes:
      prompts: B.
      samples: N, samples of each prompt.
      prompt, response: the most tokens of each.
      vocabulary: V.
    """

    prompts: int
    samples: int
    prompt: int
    response: int
    vocabulary: int

    def fields(self, **others: Any) -> dict[str, Any]:
        """Fields of a run's config."""
        return {
            "batch_size": self.prompts,
            "rollout.num_samples": self.samples,
            "data.max_prompt_length": self.prompt,
            "data.max_response_length": self.response,
            "gad.steps": 1,
            **others,
        }


def make_batch(shape: Shape, *, ragged: bool, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A host batch of the trainer, and samples for it, both as lists.

    Token 0 is used for padding alone. If ragged, prompts are evenly spread from a quarter of their limit on, and half
    of the responses are shorter than a quarter of theirs, as real ones are. Otherwise all have their largest length.
    The sampler's log-probs are those of a uniform distribution.
    """
    rng = np.random.default_rng(seed)
    count, samples, limit = shape.prompts, shape.samples, shape.response

    def lengths(size: tuple[int, ...], least: int, most: int, skewed: bool) -> np.ndarray:
        if not ragged:
            return np.full(size, most)
        drawn = rng.exponential(most / 4 / np.log(2), size) if skewed else rng.uniform(least, most + 1, size)
        return np.clip(drawn.astype(int), least, most)

    def tokens(lengths: np.ndarray, width: int) -> np.ndarray:
        drawn = rng.integers(1, shape.vocabulary, (*lengths.shape, width))
        return np.where(np.arange(width) < lengths[..., None], drawn, 0)

    prompt_length = lengths((count,), max(1, shape.prompt // 4), shape.prompt, False)
    teacher_length = lengths((count,), 1, limit, True)
    sample_length = lengths((count, samples), 1, limit, True)
    batch = {
        "prompt": tokens(prompt_length, shape.prompt),
        "prompt_length": prompt_length,
        "teacher": tokens(teacher_length, limit),
        "teacher_length": teacher_length,
        "row": np.arange(count),
    }
    drawn = {
        "tokens": tokens(sample_length, limit),
        "lengths": sample_length,
        "logprobs": np.where(np.arange(limit) < sample_length[..., None], -np.log(shape.vocabulary), 0.0),
    }
    return _lists(batch), _lists(drawn)


def _lists(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in arrays.items()}
