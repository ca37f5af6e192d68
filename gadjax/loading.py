"""Models in Python: a run's student, or any supported model, that answers chats and scores answers."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gadjax.commands import TEMPERATURE
from gadjax.errors import UserError
from gadjax.files import expand
from gadjax.generate import LIMIT

if TYPE_CHECKING:
    import numpy as np

    from gadjax.data.chats import Messages
    from gadjax.rollout.chat_model import ChatModel, CheckedNetwork, Network


class LoadedModel:
    """A model that answers chats, or scores answers, or both. Weights are read at their first use, and kept.

    A chat is a text, which stands for one message of a user, or a list of messages {"role": ..., "content": TEXT} whose
    last one is a user's.
    """

    def __init__(self, generator: CheckedNetwork | None, discriminator: CheckedNetwork | None, batch_size: int):
        """`batch_size`: chats that are answered, or answers that are scored, at once. Use `load`, which checks."""
        self._generator, self._discriminator = generator, discriminator
        self._batch_size = batch_size
        self._networks: dict[str, Network] = {}

    def __repr__(self) -> str:
        both = {"generator": self._generator, "discriminator": self._discriminator}
        return f"LoadedModel({', '.join(f'{what}={network.path}' for what, network in both.items() if network)})"

    def generate(
        self,
        chats: Sequence[str | Messages],
        *,
        temperature: float = TEMPERATURE,
        top_p: float = 1.0,
        top_k: int = 0,
        max_response_length: int | None = None,
        seed: int = 0,
    ) -> list[str]:
        """One answer to each chat, in order, as `python -m gadjax.generate` draws them.

        Args:
          chats: at least one.
          temperature: 0 is greedy.
          top_p: draws from the likeliest tokens of this total mass.
          top_k: draws from the likeliest k tokens; 0: from all.
          max_response_length: most tokens of an answer; None: 512, or fewer where the model has no room.
          seed: of the sampling.

        Raises:
          UserError: the model is a discriminator alone, a chat is no chat, or the model has no room for one.
        """
        if self._generator is None:
            raise UserError(f"{self!r} scores answers and gives none: load a causal language model, or a run's workdir")
        messages = as_chats(chats)
        model = self._chat_model
        sampling = model.sampling(
            max_response_length=max_response_length or LIMIT, temperature=temperature, top_p=top_p, top_k=top_k
        )
        with _bar("generating", len(messages), self._batch_size) as done:
            replies = model.answer(messages, sampling, seed=seed, fit=max_response_length is None, done=done)
        return [reply.text for reply in replies]

    def score(
        self, chats: Sequence[str | Messages], answers: Sequence[str], *, temperature: float = TEMPERATURE
    ) -> np.ndarray:
        """float64 [answers]: the discriminator's score of each answer to the chat in the same place.

        The higher, the more like the teacher's. Compare scores of one chat only.

        Args:
          chats: one for each answer; several answers may have the same.
          answers: texts.
          temperature: that the generator draws with; a token classifier's scores do not depend on it.

        Raises:
          UserError: the model has no discriminator, the numbers of chats and answers differ, or a chat is no chat.
        """
        from gadjax.score import ScoredRow, score_answers

        if self._discriminator is None:
            raise UserError(f"{self!r} has no discriminator: gadjax.load(MODEL, discriminator=DIR) names one")
        likelihood = self._discriminator.head == "lm"
        if likelihood and self._generator is None:
            raise UserError(f"{self!r} is of the likelihood kind: gadjax.load(GENERATOR, discriminator=DIR) scores")
        messages = as_chats(chats)
        if len(messages) != len(answers):
            raise UserError(f"{len(messages)} chats, but {len(answers)} answers: give one chat for each answer")
        rows = [ScoredRow(chat, answer, True) for chat, answer in zip(messages, answers, strict=True)]
        with _bar("scoring", len(rows) * (2 if likelihood else 1), self._batch_size) as done:
            return score_answers(
                self._discriminator,
                rows,
                generator=self._generator if likelihood else None,
                temperature=temperature,
                batch_size=self._batch_size,
                done=done,
                load=self._network,
            )

    @functools.cached_property
    def _chat_model(self) -> ChatModel:
        """The generator, ready to answer. It is made once: its compiled programs belong to it."""
        from gadjax.rollout.chat_model import chat_model

        assert self._generator is not None
        return chat_model(self._network(self._generator), self._batch_size)

    def _network(self, checked: CheckedNetwork) -> Network:
        """The network with its weights, which are read once."""
        if checked.name not in self._networks:
            self._networks[checked.name] = checked.load()
        return self._networks[checked.name]


def load(
    path: str | os.PathLike[str],
    *,
    discriminator: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    batch_size: int = 64,
) -> LoadedModel:
    """A model that answers chats, scores answers, or both, after a check of its files.

    Args:
      path: the workdir of a finished run, for its exported student and discriminator; or a Hugging Face directory or
        hub id: a causal language model answers, a run's export/discriminator scores.
      discriminator: directory or hub id of the discriminator that scores the answers of `path`.
      dtype: of weights and computation: "float32", "bfloat16", or "auto", float32 on CPUs and bfloat16 elsewhere.
      batch_size: chats that are answered, or answers that are scored, at once.

    Raises:
      UserError: there is no such model, or it cannot be used.
    """
    from gadjax.rollout.chat_model import check_network

    given, scores = os.fspath(path), None if discriminator is None else os.fspath(discriminator)
    folder = expand(given)
    if (folder / "run.json").is_file():
        exported = folder / "export"
        if not (exported / "generator").is_dir():
            raise UserError(
                f"{folder}: the run has exported nothing yet: train it to its end, or write a checkpoint with "
                f"python -m gadjax.export --workdir={folder} --out=DIR and load DIR/generator"
            )
        given = str(exported / "generator")
        if scores is None and (exported / "discriminator").is_dir():
            scores = str(exported / "discriminator")
    network = check_network(given, "lm", *(() if scores else ("score",)), dtype=dtype, flag="path")
    if network.head == "score":
        return LoadedModel(None, network, batch_size)
    judge = check_network(scores, "score", "lm", dtype=dtype, flag="discriminator") if scores else None
    return LoadedModel(network, judge, batch_size)


@contextlib.contextmanager
def _bar(what: str, total: int, at_once: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number done, which a bar shows where there is more than one batch."""
    if total <= at_once:
        yield lambda count: None
        return
    from rich.console import Console

    from gadjax.progress import RunProgress

    with RunProgress(console=Console(stderr=True)) as progress:
        progress.update(what, 0, total)
        yield lambda count: progress.update(what, count, total)


def as_chats(chats: Sequence[str | Messages]) -> list[Messages]:
    """The chats as messages; a text stands for one message of a user.

    Raises:
      UserError: there are none, or one is no chat; the message says which.
    """
    from gadjax.data.prompts import chat_of

    if isinstance(chats, str) or not len(chats):
        raise UserError("chats: expected a list with at least one chat, each a text or a list of messages")
    return [
        chat_of({"prompt" if isinstance(chat, str) else "content": chat}, f"chat {number}")
        for number, chat in enumerate(chats)
    ]
