"""A model with its tokenizer: chats in, text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gadjax.data.tokenizer import ChatTokenizer, load_tokenizer
from gadjax.models.model import Model, Params
from gadjax.models.weights import load_params, read_hf_config, resolve_model
from gadjax.parallel import mesh as layout
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    tokens: int  # EOS included
    ended: bool  # False where it was cut at the limit


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """A loaded causal language model that answers chats."""

    model: Model
    params: Params
    tokenizer: ChatTokenizer
    engine: Engine

    def sampling(self, **settings: Any) -> Sampling:
        """A `Sampling` with this tokenizer's EOS ids; `settings` are its other fields."""
        return Sampling(eos_ids=tuple(self.tokenizer.eos_ids), pad_id=self.tokenizer.pad_id, **settings)

    def answer(
        self,
        chats: Sequence[Messages],
        sampling: Sampling,
        *,
        seed: int = 0,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Reply]:
        """One reply to each chat (its last message is the user's), in order."""
        prompts = [self.tokenizer.prompt_ids(chat) for chat in chats]
        longest = max(map(len, prompts), default=0) + sampling.max_response_length
        self.model.config.check_length(longest, "the longest prompt with --max_response_length")
        answers = self.engine.generate(self.params, prompts, sampling, seed=seed, done=done)
        return [Reply(self._text(answer.tokens), len(answer.tokens), answer.ended) for answer in answers]

    def _text(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens)


def load_chat_model(name: str, *, dtype: str = "auto", batch_size: int = 64) -> ChatModel:
    """Loads a directory or hub id, spread over all devices.

    Args:
      dtype: of weights and computation; "auto" is float32 on CPU and bfloat16 elsewhere.
      batch_size: chats decoded at once.
    """
    path = resolve_model(name)
    config, _ = read_hf_config(path)
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = Model(dataclasses.replace(config, dtype=dtype), "lm")
    tokenizer = load_tokenizer(path)
    mesh = layout.make_mesh(data=1, fsdp=-1, tensor=1)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype, sharding=s),
        model.abstract_params(),
        layout.param_shardings(model, mesh),
    )
    params = load_params(path, config, abstract)
    return ChatModel(model, params, tokenizer, Engine(model, mesh, batch_size=batch_size))
