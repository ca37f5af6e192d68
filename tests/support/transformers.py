"""A fixture that asks transformers for the answers that ours are compared with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class GreedyAnswer(NamedTuple):
    """What transformers answered."""

    text: str
    tokens: int
    ended: bool


@pytest.fixture(scope="session")
def transformers_greedy() -> Callable[[pathlib.Path, list[Any], int], list[GreedyAnswer]]:
    """Greedy answers of transformers' own `generate`, one chat at a time, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def answer(model: pathlib.Path, chats: list[Any], limit: int) -> list[GreedyAnswer]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        answers = []
        for chat in chats:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                out = network.generate(**ids, do_sample=False, max_new_tokens=limit)
            own = out[0, ids["input_ids"].shape[1] :]
            text = tokenizer.decode(own, skip_special_tokens=True)
            answers.append(GreedyAnswer(text, len(own), int(own[-1]) == tokenizer.eos_token_id))
        return answers

    return answer
