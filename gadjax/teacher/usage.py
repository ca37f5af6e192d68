"""How many tokens a request takes, before a teacher whose tokenizer is not here has counted them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gadjax.data.schema import Messages

CHARACTERS_A_TOKEN = 4  # of English text under the common byte-level BPE vocabularies; code and other scripts take more
_TURN_TOKENS = 4  # of a chat template around one turn
_MOST_TURN_TOKENS = 16
_MOST_TEMPLATE_TOKENS = 64  # around the chat: an opening, a date, a system prompt that the server puts in by itself


class Usage(NamedTuple):
    """Tokens."""

    prompt: int
    completion: int

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]  # of numbers, not of tuples
        return Usage(self.prompt + other.prompt, self.completion + other.completion)


NOTHING = Usage(0, 0)


def expected_tokens(content: Messages, system: str | None = None) -> int:
    """Tokens of a chat, estimated from its characters."""
    texts = _texts(content, system)
    return math.ceil(sum(map(len, texts)) / CHARACTERS_A_TOKEN) + _TURN_TOKENS * len(texts)


def most_tokens(content: Messages, system: str | None = None) -> int:
    """Tokens that a chat is below: a byte-level vocabulary has no token of less than a byte."""
    texts = _texts(content, system)
    return sum(len(text.encode()) for text in texts) + _MOST_TURN_TOKENS * len(texts) + _MOST_TEMPLATE_TOKENS


def most_usage(content: Messages, system: str | None, max_tokens: int) -> Usage:
    """Tokens that a request can take."""
    return Usage(most_tokens(content, system), max_tokens)


def usage_of(row: dict[str, Any]) -> Usage:
    """Tokens that an answer took; where the API did not say, more than it can have been."""
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    if prompt is None:
        prompt = most_tokens(row["content"], row.get("system"))
    if completion is None:
        completion = row.get("max_tokens") or len((row["text"] or "").encode())
    return Usage(prompt, completion)


def _texts(content: Messages, system: str | None) -> list[str]:
    return ([system] if system else []) + [turn["content"] for turn in content]
