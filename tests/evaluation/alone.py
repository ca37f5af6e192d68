"""Draws, likelihoods and scores of one sequence at a time, without batches, caches or chunks, to compare ours with."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.data.chats import Messages
from gadjax.data.tokenizer import load_tokenizer
from gadjax.models.model import Model
from gadjax.models.weights import load_params, read_hf_config
from gadjax.rollout.sampler import Sampling, sample_token

WIDTH = 64  # tokens; longer sequences have a multiple, so that few shapes are compiled


class Alone:
    """A model of a directory, in float32."""

    def __init__(self, directory: pathlib.Path):
        config, hf_config = read_hf_config(directory)
        head = "lm" if hf_config["architectures"][0].endswith("ForCausalLM") else "score"
        self.model, self.tokenizer = Model(config, head), load_tokenizer(directory)
        self.params = load_params(directory, config, self.model.abstract_params())
        self.function = jax.jit(self.model.logits if head == "lm" else self.model.scores)
        self.sample_token = jax.jit(sample_token, static_argnums=2)

    def draws(self, chat: Messages, sampling: Sampling, key: jax.Array, samples: Sequence[int]) -> list[list[int]]:
        """The draws of these numbers from a chat, token by token."""
        prompt = self.tokenizer.prompt_ids(chat)
        return [self._draw(prompt.tolist(), sampling, jax.random.fold_in(key, sample)) for sample in samples]

    def nats(self, prompt: Sequence[int], response: Sequence[int], temperature: float) -> float:
        """The log-likelihood of a response, in float64."""
        scaled = self._values([*prompt, *response])[len(prompt) - 1 : -1] / temperature
        logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
        return float(logprobs[np.arange(len(response)), response].sum())

    def score(self, prompt: Sequence[int], response: Sequence[int], pooling: str = "last") -> float:
        """The head's value at the last token, or the mean over the response's."""
        values = self._values([*prompt, *response])
        return float(values[-1] if pooling == "last" else values[len(prompt) :].mean())

    def _draw(self, ids: list[int], sampling: Sampling, key: jax.Array) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < sampling.max_response_length and not (drawn and drawn[-1] in sampling.eos_ids):
            logits = self._values([*ids, *drawn])[-1]
            of_token = jax.random.fold_in(key, len(drawn))
            drawn.append(int(self.sample_token(jnp.float32(logits)[None], of_token[None], sampling)[0][0]))
        return drawn

    def _values(self, ids: Sequence[int]) -> np.ndarray:
        # What stands behind a token does not change its values.
        tokens = np.zeros((1, -(-len(ids) // WIDTH) * WIDTH), np.int32)
        tokens[0, : len(ids)] = ids
        found = self.function(self.params, tokens, np.arange(tokens.size)[None], np.ones_like(tokens))
        return np.asarray(found[0, : len(ids)], np.float64)
