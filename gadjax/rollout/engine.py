"""Answers to any number of prompts: sorts them into batches of recurring shapes and runs the jitted rollout on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from gadjax.data.bins import round_up
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as layout
from gadjax.rollout.sampler import Sampling, rollout, row_keys


@dataclasses.dataclass(frozen=True)
class Answer:
    """One response."""

    tokens: np.ndarray  # [length] int32, its EOS included where it ended
    logprobs: np.ndarray  # [length] float32, nats
    ended: bool  # False where it was cut at the limit


class Engine:
    """A model on a mesh, ready to generate."""

    def __init__(self, model: Model, mesh: Mesh, *, batch_size: int = 64):
        """`batch_size`: prompts decoded at once, rounded up to a multiple of the batch's shards."""
        self.mesh = mesh
        self.batch_size = -(-batch_size // layout.batch_shards(mesh)) * layout.batch_shards(mesh)

        def sample(params, prompt, length, number, key, sampling):
            return rollout(model, params, prompt, length, row_keys(key, number), 1, sampling)

        self.sample = jax.jit(sample, static_argnums=5, out_shardings=layout.replicated(mesh))

    def batch_shape(self, prompts: int, longest: int) -> tuple[int, int]:
        """Rows and columns of a batch: of that many prompts in all, the batch's longest of that many tokens."""
        shards = layout.batch_shards(self.mesh)
        return min(self.batch_size, -(-prompts // shards) * shards), round_up(longest, 8)

    def generate(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        seed: int = 0,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Answer]:
        """One answer to each prompt, in order.

        An answer depends on the seed, the prompt's number and the prompt: not on its neighbours.

        Args:
          params: parameters of the "lm" model.
          prompts: token arrays without padding.
          sampling: how to draw.
          done: called with the number of answers after each batch.
        """
        if not prompts:
            return []
        answers: list[Answer | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size, _ = self.batch_shape(len(prompts), 1)
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            filled = numbers + [numbers[-1]] * (size - len(numbers))  # whole batches: one shape
            lengths = np.array([len(prompts[i]) for i in filled], np.int32)
            tokens = np.full(self.batch_shape(len(prompts), int(lengths.max())), sampling.pad_id, np.int32)
            for row, number in enumerate(filled):
                tokens[row, : lengths[row]] = prompts[number]
            batch = layout.place((tokens, lengths, np.array(filled, np.uint32)), layout.rows(self.mesh))
            samples = jax.device_get(self.sample(params, *batch, jax.random.key(seed), sampling))
            for row, number in enumerate(numbers):
                length = samples.lengths[row, 0]
                answers[number] = Answer(
                    samples.tokens[row, 0, :length],
                    samples.logprobs[row, 0, :length],
                    bool(samples.ended[row, 0]),
                )
            done(start + len(numbers))
        return answers
