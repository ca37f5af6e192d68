"""Answers to any number of prompts: a queue in front of the slots of one compiled rollout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gadjax.data.bins import multiple_of, round_up
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as meshes
from gadjax.rollout.draw import Sampling
from gadjax.rollout.sampler import rollout, row_keys

_QUEUE = 16  # prompts to a slot in one call: its slots run dry only at its end


@dataclasses.dataclass(frozen=True)
class Completion:
    """One response."""

    tokens: np.ndarray  # [length] int32, its EOS included where it ended
    logprobs: np.ndarray  # [length] float32, nats
    ended: bool  # False where it was cut at the limit


class Engine:
    """A model on a mesh, ready to generate."""

    def __init__(self, model: Model, mesh: Mesh, *, batch_size: int = 64):
        """`batch_size`: prompts decoded at once, rounded up to a multiple of the batch's shards."""
        self.mesh = mesh
        self.batch_size = multiple_of(batch_size, meshes.batch_shards(mesh))

        def sample(params, prompt, length, number, key, sampling, slots):
            return rollout(model, params, prompt, length, row_keys(key, number), 1, sampling, slots)[0]

        self.sample = jax.jit(sample, static_argnums=(5, 6), out_shardings=meshes.replicated(mesh))

    def queue_size(self, prompts: int) -> tuple[int, int]:
        """Rows and slots of one call, of that many prompts in all."""
        size = round_up(min(prompts, _QUEUE * self.batch_size), meshes.batch_shards(self.mesh))
        return size, min(self.batch_size, size)

    def abstract_queue(self, count: int, width: int) -> tuple[Any, ...]:
        """What `sample` is given between the parameters and how to draw, for a queue of these rows and columns."""
        place = functools.partial(jax.ShapeDtypeStruct, sharding=meshes.rows(self.mesh))
        key = jax.eval_shape(lambda: jax.random.key(0))
        return place((count, width), np.int32), place((count,), np.int32), place((count,), np.uint32), key

    def generate(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Completion]:
        """One answer to each prompt, in order.

        An answer depends on the seed, the prompt's number and the prompt: not on its neighbours. Prompts of about the
        same length share a call of the compiled rollout, whose slots take one after another.

        Args:
          params: parameters of the "lm" model.
          prompts: token arrays without padding.
          sampling: how to draw.
          seed: of the draws.
          numbers: of 32 bits, one a prompt; None counts from 0.
          done: called with the number of answers after each call.
        """
        answers: list[Completion | None] = [None] * len(prompts)
        keys = np.arange(len(prompts), dtype=np.uint32) if numbers is None else np.array(numbers, np.uint32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size, slots = self.queue_size(len(prompts))
        for start in range(0, len(order), size):
            queued = order[start : start + size]
            # Every shard gets its share, and what fills it up comes last; whole queues have one shape.
            filled = np.full(size, -1)
            filled[: len(queued)] = queued
            filled = filled.reshape(-1, meshes.batch_shards(self.mesh)).T.reshape(-1)
            lengths = np.array([len(prompts[i]) if i >= 0 else 0 for i in filled], np.int32)
            tokens = np.full((size, queue_width(int(lengths.max()))), sampling.pad_id, np.int32)
            for row, number in enumerate(filled):
                if number >= 0:
                    tokens[row, : lengths[row]] = prompts[number]
            queue = meshes.place((tokens, lengths, keys[np.maximum(filled, 0)]), meshes.rows(self.mesh))
            samples = jax.device_get(self.sample(params, *queue, jax.random.key(seed), sampling, slots))
            for row, number in enumerate(filled):
                if number >= 0:
                    length = samples.lengths[row, 0]
                    answers[number] = Completion(
                        samples.tokens[row, 0, :length],
                        samples.logprobs[row, 0, :length],
                        bool(samples.ended[row, 0]),
                    )
            done(start + len(queued))
        return answers


def queue_width(length: int) -> int:
    """Columns of prompts of which the longest has so many tokens: at most a quarter more, so that few are compiled."""
    return round_up(length, max(8, 2 ** (length.bit_length() - 3)))
