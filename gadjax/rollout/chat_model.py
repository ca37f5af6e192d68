"""Loads a model with its tokenizer, and answers chats with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh

from gadjax.data.schema import Messages
from gadjax.data.tokenizer import ChatTokenizer, load_tokenizer
from gadjax.errors import UserError
from gadjax.models import layouts
from gadjax.models.architecture import CAUSAL_LM, TOKEN_CLASSIFICATION
from gadjax.models.model import Model, Params, resolve_dtype
from gadjax.models.weights import load_params, read_hf_config, resolve_model
from gadjax.parallel import mesh as meshes
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

_ARCHITECTURE = {"lm": CAUSAL_LM, "score": TOKEN_CLASSIFICATION}
_NEEDED = {"lm": "a causal language model, such as a run's export/generator", "score": "a run's export/discriminator"}


class Reply(NamedTuple):
    """The answer to one chat."""

    text: str
    tokens: int  # EOS included
    ended: bool  # False if it was cut at the limit


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
        fit: bool = False,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Reply]:
        """One reply to each chat, in order.

        Args:
          chats: each ends with a user's message.
          sampling: from `self.sampling`.
          seed: of the sampling.
          fit: shortens a reply's limit if the model has no room for `max_response_length` tokens after the chat.
            Without it, that is an error.
          done: called after each batch with the number of replies so far.

        Raises:
          UserError: the chat template refuses a chat, or the model has no room for a chat and its reply.
        """
        prompts = self.tokenizer.prompt_ids_batch(chats)
        limits = [sampling.max_response_length] * len(prompts)
        if fit:
            room = self.model.config.max_length
            limits = [max(1, min(limit, room - len(ids))) for limit, ids in zip(limits, prompts, strict=True)]
        longest = max((len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)), default=0)
        remedy = "shorten the prompt" if fit else "shorten the prompt or lower --max_response_length"
        self.model.config.check_length(longest, "the longest prompt with its response", remedy)
        sampling = dataclasses.replace(sampling, max_response_length=max(limits, default=1))
        completions = self.engine.generate(self.params, prompts, sampling, seed=seed, done=done)
        replies = []
        for found, limit in zip(completions, limits, strict=True):
            tokens, ended = found.tokens[:limit], found.ended and len(found.tokens) <= limit
            replies.append(Reply(self.tokenizer.decode(tokens), len(tokens), ended))
        return replies


def load_chat_model(name: str, *, dtype: str = "auto", batch_size: int = 64) -> ChatModel:
    """Loads a causal language model, as `load_network` does. `batch_size`: chats that are decoded at once."""
    network = load_network(name, "lm", dtype=dtype)
    engine = Engine(network.model, network.mesh, batch_size=batch_size)
    return ChatModel(network.model, network.params, network.tokenizer, engine)


class Network(NamedTuple):
    """A loaded model, its tokenizer, and the mesh that its parameters lie on."""

    model: Model
    params: Params
    tokenizer: ChatTokenizer
    mesh: Mesh


def load_network(name: str, head: Literal["lm", "score"], *, dtype: str = "auto") -> Network:
    """Loads a model of a directory or the hub, onto a mesh that splits batches over all devices.

    Every device holds all weights of a causal language model, since decoding reads all of them for each token. A
    classifier's weights are split.

    Args:
      name: a causal language model for the "lm" head, a token classifier with one label for "score".
      head: "lm" or "score".
      dtype: of weights and computation; "auto" is float32 on CPU and bfloat16 elsewhere.

    Raises:
      UserError: the model is of the other kind, or cannot be loaded.
    """
    path = resolve_model(name)
    config, hf_config = read_hf_config(path)
    architecture = hf_config["architectures"][0]
    if not architecture.endswith(_ARCHITECTURE[head]):
        raise UserError(f"--model={name} is a {architecture}, but this command needs {_NEEDED[head]}")
    dtype = resolve_dtype(dtype)
    decodes = head == "lm"
    mesh = meshes.make_mesh(data=-1, fsdp=1, tensor=1) if decodes else meshes.make_mesh(data=1, fsdp=-1, tensor=1)
    model = Model(dataclasses.replace(config, dtype=dtype), head, mesh)
    tokenizer = load_tokenizer(path)
    rules = meshes.DECODING_RULES if decodes else meshes.TRAINING_RULES
    abstract = layouts.abstract_params(model, mesh, dtype, rules)
    return Network(model, load_params(path, config, abstract), tokenizer, mesh)
