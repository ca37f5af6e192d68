"""An open teacher whose tokenizer is not the student's: its likelihoods are of the text, in its own tokens."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from gadjax.data.chats import Messages
from gadjax.evaluation.scoring import sequence_values
from gadjax.rollout.chat_model import Network, load_network


@dataclasses.dataclass(frozen=True)
class TextTeacher:
    """A teacher, and how it was asked. Divergences with its likelihoods are estimates: texts have several encodings.

    Attributes:
      folder: of the model.
      temperature: at which it answered.
      system: the system prompt that it answered under, which the student does not see.
    """

    folder: pathlib.Path
    temperature: float
    system: str

    @property
    def name(self) -> str:
        """What tells it from another one."""
        return f"{self.folder} {self.temperature} {self.system}"

    def log_likelihoods(self, chats: Sequence[Messages], texts: Sequence[str], ended: Sequence[bool]) -> np.ndarray:
        """log p(text | chat) in nats: [texts]; the end of the turn is a part of those that ended."""
        model, params, tokenizer, mesh = self._loaded
        asked = [[{"role": "system", "content": self.system}, *chat] for chat in chats]
        prompts = tokenizer.prompt_ids_batch(asked)
        end = np.array([tokenizer.turn_end_id], np.int32)
        responses = [ids if len(ids) else end for ids in tokenizer.response_ids_batch(texts, ended)]
        return sequence_values(model, params, mesh, prompts, responses, temperature=self.temperature)

    @functools.cached_property
    def _loaded(self) -> Network:
        return load_network(str(self.folder), "lm", dtype="float32")
