"""The rollout in several calls of a compiled program: a few token steps in each, so that the host sees what is drawn.

The samples are those of `gadjax.rollout.sampler.rollout`. A call costs a copy of what it returns to the host, so the
number of its steps follows the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.models.model import Model, Params
from gadjax.rollout.draw import Sampling
from gadjax.rollout.sampler import CACHES, ROWS, Loop, LoopState, Samples, row_keys, sizes_of

Queue = tuple[jax.Array, jax.Array, jax.Array]  # prompts [B, P], their lengths [B] and numbers [B]


def has_ended(samples: Samples) -> np.ndarray:
    """Whether each sample has its last token, by EOS or at the limit."""
    return np.logical_or(samples.ended, samples.lengths == samples.tokens.shape[-1])


class Stepwise:
    """A model on a mesh, whose rollouts run a few token steps at a time."""

    def __init__(self, model: Model, mesh: Mesh):
        self._model = model
        rows, caches, whole = (NamedSharding(mesh, spec) for spec in (ROWS, CACHES, P()))
        fields: dict[str, Any] = dict(queue=rows, prompts=caches, responses=caches, samples=rows, steps=whole)
        state = LoopState(**fields)
        self._begin = jax.jit(self._first_state, static_argnums=(3, 4, 5), out_shardings=(None, state))
        self._advance = jax.jit(
            self._next_state, static_argnums=(5,), donate_argnums=(4,), out_shardings=(whole, state)
        )

    def samples(
        self,
        params: Params,
        queue: Queue,
        key: jax.Array,
        sampling: Sampling,
        slots: int,
        num_samples: int = 1,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[Samples]:
        """Yields the samples so far, on the host, after every few token steps, until all have ended.

        Args:
          params: parameters of the "lm" model.
          queue: the prompts, as for `rollout`; a prompt's key is made of `key` and its number.
          key: of the draws.
          sampling: how tokens are drawn.
          slots: samples that are decoded at once.
          num_samples: N, of each prompt.
          seconds: what comes from one call should take, about; one token step at least.
          clock: returns seconds that only grow.
        """
        count = int(np.sum(jax.device_get(queue[1]) > 0)) * num_samples
        layers, state = self._begin(params, queue, key, num_samples, sampling, slots)
        done, steps, at_once = 0, 0, 1
        while done < count:
            began, steps = clock(), steps + at_once
            seen, state = self._advance(params, layers, queue, key, state, sampling, np.int32(steps))
            seen = jax.device_get(seen)
            seen = jax.tree.map(lambda x: x.reshape(-1, num_samples, *x.shape[1:]), seen)
            yield seen
            done = int(np.sum(has_ended(seen)))
            at_once = 2 * at_once if clock() - began < seconds / 2 else max(1, at_once // 2)

    def _first_state(self, params, queue, key, num_samples, sampling, slots) -> tuple[Any, LoopState]:
        """The decoder's layers, unstacked once for all calls, and the state before the first token step."""
        prompt, length, number = queue
        count, width = prompt.shape
        sizes = sizes_of(self._model.mesh, count, width, num_samples, slots)
        loop = Loop(self._model, params, (prompt, length, row_keys(key, number)), sampling, sizes)
        return loop.layers, loop.start()

    def _next_state(self, params, layers, queue, key, state, sampling, until) -> tuple[Samples, LoopState]:
        """The samples and the state after `until` token steps in all."""
        prompt, length, number = queue
        inputs = prompt, length, row_keys(key, number)
        loop = Loop(self._model, params, inputs, sampling, state.queue.sizes, layers)
        state = loop.some_steps(state, until)
        return state.samples, state
