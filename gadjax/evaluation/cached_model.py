"""A model on this machine whose draws, log-likelihoods and scores are computed once and kept in a cache.

A row's key names the model's weights and tokenizer, the prompt's ids and the sampling. So a changed model or prompt is
asked anew, an unchanged one is not, and an evaluation that was stopped goes on. Random numbers depend on the seed, the
prompt and the number of the draw, not on the order or the other prompts of the set. All models share them, which makes
differences between models less noisy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from gadjax.data.chats import Messages
from gadjax.evaluation import scoring
from gadjax.evaluation.local_models import Loaded, LocalModel
from gadjax.evaluation.result_cache import ResultCache, digest
from gadjax.models.model import Model
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

Done = Callable[[int], None]

_CALLS = 8  # batches between two writes to the cache


@dataclasses.dataclass(frozen=True)
class ResponseTokens:
    """A response's token ids, with EOS if it `ended`; else the limit cut it."""

    tokens: tuple[int, ...]
    ended: bool


class CachedModel:
    """A model's draws and values. Weights are loaded when the cache lacks something; `close` frees them."""

    def __init__(self, local: LocalModel, cache: ResultCache, *, batch_size: int = 64, seed: int = 0):
        """`batch_size` prompts are decoded at once; `seed` is that of the draws."""
        self.local, self.cache, self.batch_size, self.seed = local, cache, batch_size, seed
        self._loaded: Loaded | None = None

    @property
    def network(self) -> Loaded:
        """The model with its parameters."""
        if self._loaded is None:
            self._loaded = self.local.load()
        return self._loaded

    def close(self) -> None:
        """Frees the weights."""
        self._loaded = None

    def prompts(self, chats: Sequence[Messages]) -> list[np.ndarray]:
        """The chats as token ids, under the model's own template."""
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
        """A response to each prompt, sampled from the model's whole distribution.

        Args:
          prompts: token ids; equal prompts get draws of their own.
          limit: tokens of a response, at most.
          temperature: divides the logits; 0 is greedy.
          sample: the number of the draw, for several draws from a prompt.
          eos_ids: end a response; None for the model's own.
          done: called with the number of responses so far.
        """
        eos_ids = self.local.eos_ids if eos_ids is None else eos_ids
        # A key and a random number for each prompt; `before` counts equal prompts.
        before: Counter[bytes] = Counter()
        keys, numbers = [], []
        for ids in prompts:
            which = digest(sample, before[ids.tobytes()], ids.tolist())
            before[ids.tobytes()] += 1
            drawn = [self.seed, which] if temperature else ids.tolist()
            keys.append(digest("draw", self.local.identity, list(eos_ids), limit, temperature, drawn))
            numbers.append(int(which[:8], 16))
        # Draw what the cache lacks, prompts of similar lengths together.
        missing = {key: i for i, key in enumerate(keys) if key not in self.cache}
        rest = sorted(missing.values(), key=lambda i: (len(prompts[i]), keys[i]))
        sampling = Sampling(limit, tuple(eos_ids), self.local.tokenizer.pad_id, temperature)
        found = len(keys) - len(rest)
        size = _CALLS * self.batch_size
        if rest:
            done(found)  # before weights are loaded and programs compiled, which takes a while
        for start in range(0, len(rest), size):
            chosen = rest[start : start + size]
            answers = self._engine.generate(
                self.network.params,
                [prompts[i] for i in chosen],
                sampling,
                seed=self.seed,
                numbers=[numbers[i] for i in chosen],
                done=lambda count, start=start: done(found + start + count),  # type: ignore[misc]
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
        """log p(response | prompt) in nats under the whole distribution: float64 [responses].

        Args:
          prompts: token ids of each response's prompt.
          responses: token ids, at least one each.
          temperature: divides the logits; above 0.
          done: called with the number of responses so far.
        """
        key = ["likelihood", self.local.identity, temperature]
        return self._values(key, "nats", prompts, responses, temperature, done)

    def values(
        self, prompts: Sequence[np.ndarray], responses: Sequence[Sequence[int]], *, done: Done = lambda count: None
    ) -> np.ndarray:
        """`scoring.sequence_values` at temperature 1, of which a discriminator's scores are made: float64 [responses].

        Arguments as for `log_likelihoods`.
        """
        if self.local.head == "lm":
            return self.log_likelihoods(prompts, responses, 1.0, done=done)
        return self._values(["score", self.local.identity], "score", prompts, responses, 1.0, done)

    @property
    def _engine(self) -> Engine:
        return _engine(self.network.model, self.network.mesh, self.batch_size)

    def _values(
        self,
        what: list,
        field: str,
        prompts: Sequence[np.ndarray],
        responses: Sequence[Sequence[int]],
        temperature: float,
        done: Done,
    ) -> np.ndarray:
        """`scoring.sequence_values` of the responses, those in the cache included.

        `what` begins a row's key, and `field` is the value's name in it.
        """
        keys = [
            digest(*what, prompt.tolist(), list(map(int, response)))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        missing = {key: i for i, key in enumerate(keys) if key not in self.cache}
        rest = sorted(missing.values(), key=lambda i: len(prompts[i]) + len(responses[i]))
        found, size = len(keys) - len(rest), _CALLS * scoring.BATCH
        if rest:
            done(found)  # before weights are loaded and programs compiled, which takes a while
        for start in range(0, len(rest), size):
            chosen = rest[start : start + size]
            values = scoring.sequence_values(
                *self.network,
                [prompts[i] for i in chosen],
                [responses[i] for i in chosen],
                pooling=self.local.pooling,
                temperature=temperature,
                batch_size=min(scoring.BATCH, len(rest)),
                done=lambda count, start=start: done(found + start + count),  # type: ignore[misc]
            )
            self.cache.add({keys[i]: {field: float(value)} for i, value in zip(chosen, values, strict=True)})
        return np.array([self.cache[key][field] for key in keys], np.float64)


@functools.lru_cache(maxsize=4)
def _engine(model: Model, mesh: Mesh, batch_size: int) -> Engine:
    """The engine, compiled once for all models of an architecture."""
    return Engine(model, mesh, batch_size=batch_size)
