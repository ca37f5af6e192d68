"""Completes any number of prompts with one compiled rollout, whose slots take them from a queue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gadjax.data.bins import multiple_of, round_up
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as meshes
from gadjax.rollout.draw import Sampling
from gadjax.rollout.sampler import Samples, rollout, row_keys
from gadjax.rollout.stepwise import Stepwise, has_ended

_QUEUE = 16  # prompts in one call, for each slot: slots are idle only at the end of a call
_BLINK = 0.1  # seconds between two looks at a completion that grows
_PAUSE = 2.0  # seconds between two looks for completions that have ended


@dataclasses.dataclass(frozen=True)
class Completion:
    """One response."""

    tokens: np.ndarray  # [length] int32, its EOS included if it ended
    logprobs: np.ndarray  # [length] float32, nats
    ended: bool  # False if it was cut at the limit


class _Call(NamedTuple):
    """The prompts of one rollout."""

    held: list[tuple[int, int]]  # the row of each prompt, and its place among all prompts
    queue: tuple[jax.Array, jax.Array, jax.Array]  # prompts, lengths, numbers
    slots: int


class Engine:
    """A model on a mesh, ready to generate."""

    def __init__(self, model: Model, mesh: Mesh, *, batch_size: int = 64):
        """`batch_size`: prompts that are decoded at once, rounded up to a multiple of the mesh's batch shards."""
        self.mesh = mesh
        self.batch_size = multiple_of(batch_size, meshes.batch_shards(mesh))

        def sample(params, prompt, length, number, key, sampling, slots, samples=1):
            return rollout(model, params, prompt, length, row_keys(key, number), samples, sampling, slots)[0]

        self.sample = jax.jit(sample, static_argnums=(5, 6, 7), out_shardings=meshes.replicated(mesh))
        self._stepwise = Stepwise(model, mesh)

    def queue_size(self, prompts: int, samples: int = 1) -> tuple[int, int]:
        """The number of rows and of slots in one call of `sample`, for this many prompts in all and samples of each."""
        at_once = -(-_QUEUE * self.batch_size // samples)
        size = round_up(min(prompts, at_once), meshes.batch_shards(self.mesh))
        return size, min(self.batch_size, size * samples)

    def abstract_queue(self, count: int, width: int) -> tuple[Any, ...]:
        """Shapes of the arguments of `sample` from `prompt` to `key`, for `count` prompts of `width` columns."""
        array = functools.partial(jax.ShapeDtypeStruct, sharding=meshes.rows(self.mesh))
        key = jax.eval_shape(lambda: jax.random.key(0))
        return array((count, width), np.int32), array((count,), np.int32), array((count,), np.uint32), key

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
        """One completion of each prompt, in order: the first sample of `generate_groups`, with its arguments."""
        groups = self.generate_groups(params, prompts, sampling, 1, seed=seed, numbers=numbers, done=done)
        return [completion for (completion,) in groups]

    def generate_groups(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        samples: int,
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order. A prompt is read once for all of them.

        A completion depends only on the seed, the prompt, the prompt's number, and its own place among the samples: the
        first samples are the same however many there are. Prompts of similar lengths share a call of the compiled
        rollout.

        Args:
          params: parameters of the "lm" model.
          prompts: token arrays without padding.
          sampling: how tokens are drawn.
          samples: completions of each prompt.
          seed: of the draws.
          numbers: one for each prompt, of 32 bits; None means 0, 1, ...
          done: called after each rollout with the number of prompts that are completed.
        """
        found: list[Any] = [None] * len(prompts)
        count = 0
        for call in self._calls(prompts, sampling.pad_id, samples, numbers):
            drawn = self.sample(params, *call.queue, jax.random.key(seed), sampling, call.slots, samples)
            drawn = jax.device_get(drawn)
            for row, i in call.held:
                found[i] = _group(drawn, row)
            done(count := count + len(call.held))
        return found

    def groups_as_they_end(
        self,
        params: Params,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        samples: int = 1,
        *,
        seed: int = 0,
        kept: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields a prompt's place and its `samples` completions as soon as all of these have ended.

        The completions are those of `generate_groups`, with its arguments. The work is cut into rollouts in the same
        way whatever was kept, so that the same compiled programs draw what is missing.

        Args:
          kept: places of prompts that are not completed, because an earlier process did so.
        """
        for call in self._calls(prompts, sampling.pad_id, samples, kept=kept):
            waiting = dict(call.held)
            draws = sampling, call.slots, samples
            for drawn in self._stepwise.samples(params, call.queue, jax.random.key(seed), *draws, seconds=_PAUSE):
                ended = np.all(has_ended(drawn), axis=1).tolist()
                for row in [row for row in waiting if ended[row]]:
                    yield waiting.pop(row), _group(drawn, row)

    def growing(
        self, params: Params, prompt: np.ndarray, sampling: Sampling, *, seed: int = 0
    ) -> Iterator[tuple[Completion, bool]]:
        """Yields the completion of one prompt while it grows, and whether it is whole.

        The whole one is that of `generate`, with its arguments.
        """
        (call,) = self._calls([prompt], sampling.pad_id, 1)
        ((row, _),) = call.held
        draws = sampling, call.slots
        for drawn in self._stepwise.samples(params, call.queue, jax.random.key(seed), *draws, seconds=_BLINK):
            yield _group(drawn, row)[0], bool(has_ended(drawn)[row, 0])

    def _calls(
        self,
        prompts: Sequence[np.ndarray],
        pad_id: int,
        samples: int,
        numbers: Sequence[int] | None = None,
        kept: Collection[int] = (),
    ) -> Iterator[_Call]:
        """The rollouts that complete the prompts, without those of `kept`. Similar lengths share a rollout."""
        keys = np.arange(len(prompts), dtype=np.uint32) if numbers is None else np.array(numbers, np.uint32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size, slots = self.queue_size(len(prompts), samples)
        for start in range(0, len(order), size):
            share = order[start : start + size]
            wanted = [i for i in share if i not in kept]
            if not wanted:
                continue
            # A queue of one size, padded with -1. Neighbours go to different shards, so that each gets its share.
            rows = np.full(size, -1)
            rows[: len(wanted)] = wanted
            rows = rows.reshape(-1, meshes.batch_shards(self.mesh)).T.reshape(-1)
            held = [(row, int(i)) for row, i in enumerate(rows) if i >= 0]
            # The prompts, padded on the right; padding of the queue has length 0 and is not sampled.
            lengths = np.array([len(prompts[i]) if i >= 0 else 0 for i in rows], np.int32)
            tokens = np.full((size, queue_width(max(len(prompts[i]) for i in share))), pad_id, np.int32)
            for row, i in held:
                tokens[row, : lengths[row]] = prompts[i]
            queue = meshes.place((tokens, lengths, keys[np.maximum(rows, 0)]), meshes.rows(self.mesh))
            yield _Call(held, queue, slots)


def _group(drawn: Samples, row: int) -> list[Completion]:
    """The completions of one row of samples on the host."""
    fields = zip(*(x[row] for x in (drawn.tokens, drawn.logprobs, drawn.lengths, drawn.ended)), strict=True)
    return [Completion(ids[:end], logp[:end], bool(ended)) for ids, logp, end, ended in fields]


def queue_width(length: int) -> int:
    """Columns for prompts of up to `length` tokens: at most a quarter more, so that few widths are compiled."""
    return round_up(length, max(8, 2 ** (length.bit_length() - 3)))
