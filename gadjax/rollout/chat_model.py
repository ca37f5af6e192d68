"""Checks and loads a model with its tokenizer, and answers chats with it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gadjax.data.chats import Messages
from gadjax.data.tokenizer import ChatTokenizer, load_tokenizer
from gadjax.errors import UserError
from gadjax.models import layouts
from gadjax.models.architecture import CAUSAL_LM, TOKEN_CLASSIFICATION, ModelConfig
from gadjax.models.hf_files import pooling_of
from gadjax.models.model import Model, Params, resolve_dtype
from gadjax.models.weights import check_weights, load_params, read_hf_config, resolve_model
from gadjax.parallel import mesh as meshes
from gadjax.rollout.engine import Completion, Engine
from gadjax.rollout.sampler import Sampling

Head = Literal["lm", "score"]

_UNFINISHED = "\ufffd"  # what tokenizers write for the first bytes of a character

_ARCHITECTURE: dict[Head, str] = {"lm": CAUSAL_LM, "score": TOKEN_CLASSIFICATION}
_NEEDED = {
    ("lm",): "a causal language model, such as a run's export/generator",
    ("lm", "score"): "a causal language model or a discriminator, such as a run's export/generator",
    ("score",): "a run's export/discriminator",
    ("score", "lm"): "a discriminator, such as a run's export/discriminator",
}


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
        """One reply to each chat, in order; arguments and errors as for `complete`."""
        groups = self.complete(chats, sampling, 1, seed=seed, fit=fit, done=done)
        return [as_reply(self.tokenizer, completion) for (completion,) in groups]

    def complete(
        self,
        chats: Sequence[Messages],
        sampling: Sampling,
        samples: int,
        *,
        seed: int = 0,
        fit: bool = False,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[list[Completion]]:
        """`samples` replies to each chat as token ids, in order. The first one is that of `answer`.

        Args:
          chats: each ends with a user's message.
          sampling: from `self.sampling`.
          samples: replies to each chat.
          seed: of the sampling.
          fit: shortens a reply's limit if the model has no room for `max_response_length` tokens after the chat.
            Without it, that is an error.
          done: called after each batch with the number of chats so far.

        Raises:
          UserError: the chat template refuses a chat, or the model has no room for a chat and its reply.
        """
        prompts, limits, sampling = self._prepared(chats, sampling, fit)
        groups = self.engine.generate_groups(self.params, prompts, sampling, samples, seed=seed, done=done)
        return [[_cut(one, limit) for one in group] for group, limit in zip(groups, limits, strict=True)]

    def complete_as_they_end(
        self,
        chats: Sequence[Messages],
        sampling: Sampling,
        samples: int,
        *,
        seed: int = 0,
        fit: bool = False,
        kept: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields a chat's place and its replies as soon as they have ended; these are those of `complete`.

        Args:
          kept: places of chats that are not answered, because an earlier process did so.
          chats, sampling, samples, seed, fit: as for `complete`. `chats` holds those of `kept` too.

        Raises:
          UserError: as for `complete`.
        """
        prompts, limits, sampling = self._prepared(chats, sampling, fit)
        ended = self.engine.groups_as_they_end(self.params, prompts, sampling, samples, seed=seed, kept=kept)
        for place, group in ended:
            yield place, [_cut(one, limits[place]) for one in group]

    def stream(self, chat: Messages, sampling: Sampling, *, seed: int = 0, fit: bool = False) -> Iterator[Reply]:
        """Yields the reply to one chat while it grows; the last one is that of `answer`.

        Characters of which a part is yet to come are left out. Arguments and errors as for `complete`.
        """
        (prompt,), _, sampling = self._prepared([chat], sampling, fit)
        for completion, whole in self.engine.growing(self.params, prompt, sampling, seed=seed):
            reply = as_reply(self.tokenizer, completion)
            yield reply if whole else reply._replace(text=reply.text.rstrip(_UNFINISHED))

    def _prepared(
        self, chats: Sequence[Messages], sampling: Sampling, fit: bool
    ) -> tuple[list[np.ndarray], list[int], Sampling]:
        """The chats as token ids, the most tokens of each reply, and the sampling with the largest of these limits."""
        prompts = self.tokenizer.prompt_ids_batch(chats)
        limits = response_limits(self.model.config, prompts, sampling.max_response_length, fit=fit)
        return prompts, limits, dataclasses.replace(sampling, max_response_length=max(limits, default=1))


def as_reply(tokenizer: ChatTokenizer, completion: Completion) -> Reply:
    """A completion as text."""
    return Reply(tokenizer.decode(completion.tokens), len(completion.tokens), completion.ended)


def response_limits(config: ModelConfig, prompts: Sequence[np.ndarray], limit: int, *, fit: bool) -> list[int]:
    """The most tokens of the reply to each prompt: `limit`, or the room that the model has if it is less and `fit`.

    Raises:
      UserError: the model has no room for a prompt and its reply.
    """
    limits = [limit] * len(prompts)
    if fit:
        limits = [max(1, min(limit, config.max_length - len(ids))) for ids in prompts]
    longest = max((len(ids) + most for ids, most in zip(prompts, limits, strict=True)), default=0)
    remedy = "shorten the prompt" if fit else "shorten the prompt or lower --max_response_length"
    config.check_length(longest, "the longest prompt with its response", remedy)
    return limits


def _cut(found: Completion, limit: int) -> Completion:
    if len(found.tokens) <= limit:
        return found
    return Completion(found.tokens[:limit], found.logprobs[:limit], False)


def chat_model(network: Network, batch_size: int) -> ChatModel:
    """A loaded causal language model, ready to answer. `batch_size`: chats that are decoded at once."""
    engine = Engine(network.model, network.mesh, batch_size=batch_size)
    return ChatModel(network.model, network.params, network.tokenizer, engine)


class Network(NamedTuple):
    """A loaded model, its tokenizer, and the mesh that its parameters lie on."""

    model: Model
    params: Params
    tokenizer: ChatTokenizer
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class CheckedNetwork:
    """A model whose files were checked, before its weights are read.

    Attributes:
      name: as the user gave it, with the flag.
      path: its directory.
      head: "lm" of a causal language model, "score" of a token classifier.
      config: its architecture, with the dtype of computation.
      tokenizer: of its own.
      pooling: of a token classifier's values (`gadjax.models.hf_files.pooling_of`).
    """

    name: str
    path: pathlib.Path
    head: Head
    config: ModelConfig
    tokenizer: ChatTokenizer
    pooling: str

    def load(self, *, decodes: bool = True) -> Network:
        """Reads the weights, onto a mesh that splits batches over all devices.

        `decodes`: every device holds all weights, since decoding reads all of them for each token. Without it, and for
        a classifier, the weights are split.
        """
        decodes = decodes and self.head == "lm"
        mesh = meshes.make_mesh(data=-1, fsdp=1, tensor=1) if decodes else meshes.make_mesh(data=1, fsdp=-1, tensor=1)
        model = Model(self.config, self.head, mesh)
        rules = meshes.DECODING_RULES if decodes else meshes.TRAINING_RULES
        abstract = layouts.abstract_params(model, mesh, self.config.dtype, rules)
        return Network(model, load_params(self.path, self.config, abstract), self.tokenizer, mesh)


def check_network(name: str, *heads: Head, dtype: str = "auto", flag: str = "--model") -> CheckedNetwork:
    """Checks the files of a model of a directory or the hub, without reading its weights.

    Args:
      name: a causal language model for the "lm" head, a token classifier with one label for "score".
      *heads: those that may be.
      dtype: of weights and computation; "auto" is float32 on CPU and bfloat16 elsewhere.
      flag: that names the model, for messages.

    Raises:
      UserError: the model is of another kind, or cannot be loaded.
    """
    path = resolve_model(name)
    config, hf_config = read_hf_config(path)
    architecture = hf_config["architectures"][0]
    head = next((head for head in heads if architecture.endswith(_ARCHITECTURE[head])), None)
    if head is None:
        raise UserError(f"{flag}={name} is a {architecture}, but this command needs {_NEEDED[heads]}")
    config = dataclasses.replace(config, dtype=resolve_dtype(dtype))
    check_weights(path, config, Model(config, head).abstract_params())
    pooling = pooling_of(hf_config, str(path / "config.json"))
    return CheckedNetwork(f"{flag}={name}", path, head, config, load_tokenizer(path), pooling)


def load_network(name: str, head: Head, *, dtype: str = "auto") -> Network:
    """Loads a model of a directory or the hub for decoding; arguments and errors as for `check_network`."""
    return check_network(name, head, dtype=dtype).load()
