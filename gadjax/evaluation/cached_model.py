"""What a model of this machine answers, and how likely it holds answers to be: computed once, kept in a cache.

A row of the cache is named by the model's weights and tokenizer, the prompt's ids and how it was drawn. So a changed
model or prompt is asked anew, an unchanged one is not, and a run that was stopped goes on. Random numbers belong to the
seed, the prompt and the number of the draw: they depend on neither the order of the prompts nor what else is in the
set, and are the same for all models, whose differences are so less noisy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gadjax.data.bins import multiple_of, round_up
from gadjax.data.packing import one_per_row, padded
from gadjax.data.schema import Messages
from gadjax.distill.forward import response_logprobs
from gadjax.evaluation.local_models import Loaded, LocalModel
from gadjax.evaluation.result_cache import ResultCache, digest
from gadjax.models.model import Model
from gadjax.parallel import mesh as meshes
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

Done = Callable[[int], None]

_CALLS = 8  # batches of prompts between two visits to the cache
_SCORED_TOGETHER = 16
_LOGITS_AT_ONCE = 1024  # positions


@dataclasses.dataclass(frozen=True)
class ResponseTokens:
    """A response: its token ids, EOS included where it `ended`, and not cut at the limit."""

    tokens: tuple[int, ...]
    ended: bool


class CachedModel:
    """A model's draws and likelihoods. Weights are loaded when the cache lacks something, and let go by `close`."""

    def __init__(self, local: LocalModel, cache: ResultCache, *, batch_size: int = 64, seed: int = 0):
        """
        Args:
          local: the model.
          cache: of draws and likelihoods.
          batch_size: prompts decoded at once.
          seed: of the draws.
        """
        self.local, self.cache, self.batch_size, self.seed = local, cache, batch_size, seed
        self._loaded: Loaded | None = None

    @property
    def network(self) -> Loaded:
        """The model with its parameters."""
        if self._loaded is None:
            self._loaded = self.local.load()
        return self._loaded

    def close(self) -> None:
        """Lets the weights go."""
        self._loaded = None

    def prompts(self, chats: Sequence[Messages]) -> list[np.ndarray]:
        """The chats under the model's own template, as ids."""
        return self.local.tokenizer.prompt_ids_batch(chats)

    def draw(
        self,
        prompts: Sequence[np.ndarray],
        limit: int,
        temperature: float,
        *,
        sample: int = 0,
        eos_ids: tuple[int, ...] | None = None,
        done: Done = lambda count: None,
    ) -> list[ResponseTokens]:
        """A response to each prompt, drawn from the model's whole distribution at a temperature; 0 is greedy.

        Args:
          prompts: ids; equal ones get draws of their own.
          limit: tokens at most.
          temperature: divides the logits.
          sample: which one of a prompt's draws.
          eos_ids: that end a response; None for the model's own.
          done: called with how many are there.
        """
        eos_ids = self.local.eos_ids if eos_ids is None else eos_ids
        before: Counter[bytes] = Counter()
        keys, numbers = [], []
        for ids in prompts:
            which = digest(sample, before[ids.tobytes()], ids.tolist())
            before[ids.tobytes()] += 1
            drawn = [self.seed, which] if temperature else ids.tolist()
            keys.append(digest("draw", self.local.identity, list(eos_ids), limit, temperature, drawn))
            numbers.append(int(which[:8], 16))
        missing = {key: i for i, key in enumerate(keys) if key not in self.cache}
        rest = sorted(missing.values(), key=lambda i: (len(prompts[i]), keys[i]))
        sampling = Sampling(limit, tuple(eos_ids), self.local.tokenizer.pad_id, temperature)
        found = len(keys) - len(rest)
        size = _CALLS * self.batch_size
        if rest:
            done(found)  # what follows loads weights, compiles and draws before it can tell more
        for start in range(0, len(rest), size):
            chosen = rest[start : start + size]
            answers = self._programs[0].generate(
                self.network.params,
                [prompts[i] for i in chosen],
                sampling,
                seed=self.seed,
                numbers=[numbers[i] for i in chosen],
                done=lambda count, start=start: done(found + start + count),
            )
            rows = {
                keys[i]: {"tokens": answer.tokens.tolist(), "ended": answer.ended}
                for i, answer in zip(chosen, answers, strict=True)
            }
            self.cache.add(rows)
        return [ResponseTokens(tuple(self.cache[key]["tokens"]), self.cache[key]["ended"]) for key in keys]

    def log_likelihoods(
        self,
        prompts: Sequence[np.ndarray],
        responses: Sequence[Sequence[int]],
        temperature: float,
        *,
        done: Done = lambda count: None,
    ) -> np.ndarray:
        """log p(response | prompt) in nats, of the whole distribution at a temperature above 0: float64 [responses].

        Args:
          prompts: ids, one a response.
          responses: token ids, at least one each.
          temperature: divides the logits.
          done: called with how many are there.
        """
        keys = [
            digest("likelihood", self.local.identity, temperature, prompt.tolist(), list(map(int, response)))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        missing = {key: i for i, key in enumerate(keys) if key not in self.cache}
        rest = sorted(missing.values(), key=lambda i: len(prompts[i]) + len(responses[i]))
        found = len(keys) - len(rest)
        if rest:
            size = multiple_of(min(_SCORED_TOGETHER, len(rest)), meshes.batch_shards(self.network.mesh))
            for start in range(0, len(rest), size):
                chosen = rest[start : start + size]
                filled = np.resize(chosen, size)  # whole batches: few shapes
                values = self._score([prompts[i] for i in filled], [responses[i] for i in filled], temperature)
                self.cache.add({keys[i]: {"nats": float(v)} for i, v in zip(chosen, values, strict=False)})
                done(found + start + len(chosen))
        return np.array([self.cache[key]["nats"] for key in keys], np.float64)

    @property
    def _programs(self) -> tuple[Engine, Any]:
        return _compiled(self.network.model, self.network.mesh, self.batch_size)

    def _score(self, prompts, responses, temperature: float) -> np.ndarray:
        """Summed on the host in float64: a thousand terms in float32 would cost digits that a difference needs."""
        fields = [array for sequences in (prompts, responses) for array in _padded(sequences)]
        fields = meshes.place(tuple(fields), meshes.rows(self.network.mesh))
        found = np.asarray(self._programs[1](self.network.params, fields, temperature), np.float64)
        return np.array([row[: len(response)].sum() for row, response in zip(found, responses, strict=True)])


@functools.lru_cache(maxsize=4)
def _compiled(model: Model, mesh: Mesh, batch_size: int) -> tuple[Engine, Any]:
    """Draws and log-probabilities of response tokens: compiled once for all models of an architecture."""

    def logprobs(params, fields, temperature):
        rows = one_per_row(*fields)
        return response_logprobs(model, params, rows, temperature=temperature, chunk=_LOGITS_AT_ONCE)[0]

    logprobs = jax.jit(logprobs, static_argnums=2, out_shardings=meshes.replicated(mesh))
    return Engine(model, mesh, batch_size=batch_size), logprobs


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """To a width that recurs."""
    return padded(sequences, round_up(max(map(len, sequences)), 8, steps=4))
