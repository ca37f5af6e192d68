"""An open teacher whose tokenizer is not the student's: its likelihoods are of the text, in its own tokens."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from gadjax.data.packing import one_per_row, padded
from gadjax.data.schema import Messages
from gadjax.distill.forward import per_sequence, response_logprobs
from gadjax.parallel import mesh as meshes
from gadjax.rollout.chat_model import Network, load_network

_BATCH = 16


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
        network, program = self._loaded
        tokenizer = network.tokenizer
        asked = [[{"role": "system", "content": self.system}, *chat] for chat in chats]
        prompts = tokenizer.prompt_ids_batch(asked)
        end = np.array([tokenizer.turn_end_id], np.int32)
        responses = [ids if len(ids) else end for ids in tokenizer.response_ids_batch(texts, ended)]
        widths = [max(map(len, sequences)) for sequences in (prompts, responses)]
        found = np.zeros(len(texts))
        for first in range(0, len(texts), _BATCH):
            chosen = np.arange(first, min(first + _BATCH, len(texts)))
            filled = np.resize(chosen, _BATCH)  # whole batches: one shape
            fields: list[np.ndarray] = []
            for sequences, width in zip((prompts, responses), widths, strict=True):
                fields += padded([sequences[i] for i in filled], width)
            placed = meshes.place(tuple(fields), meshes.rows(network.mesh))
            found[chosen] = np.asarray(program(network.params, placed))[: len(chosen)]
        return found

    @functools.cached_property
    def _loaded(self) -> tuple[Network, jax.stages.Wrapped]:
        network = load_network(str(self.folder), "lm", dtype="float32")

        def program(params, fields):
            rows = one_per_row(*fields)
            logprobs, _ = response_logprobs(network.model, params, rows, temperature=self.temperature, chunk=1024)
            return per_sequence(logprobs, rows)

        return network, jax.jit(program, out_shardings=meshes.replicated(network.mesh))
