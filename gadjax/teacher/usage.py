"""Tokens of requests: as the API counts them, and estimated before, as the teacher's tokenizer may not be here."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gadjax.data.chats import Messages

CHARACTERS_A_TOKEN = 4  # of English text in common byte-level BPE vocabularies; code and other scripts have fewer
_TURN_TOKENS = 4  # that a chat template adds to one turn
_MOST_TURN_TOKENS = 16
_MOST_TEMPLATE_TOKENS = 64  # that a template adds to a chat: an opening, a date, a server's own system prompt


class Usage(NamedTuple):
    """Numbers of tokens."""

    prompt: int
    completion: int

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]  # adds numbers, not tuples
        return Usage(self.prompt + other.prompt, self.completion + other.completion)


NOTHING = Usage(0, 0)


def expected_tokens(content: Messages, system: str | None = None) -> int:
    """The tokens of a chat, estimated from its characters."""
    texts = _texts(content, system)
    return math.ceil(sum(map(len, texts)) / CHARACTERS_A_TOKEN) + _TURN_TOKENS * len(texts)


def most_tokens(content: Messages, system: str | None = None) -> int:
    """An upper bound on the tokens of a chat: no token of a byte-level vocabulary is less than a byte."""
    texts = _texts(content, system)
    return sum(len(text.encode()) for text in texts) + _MOST_TURN_TOKENS * len(texts) + _MOST_TEMPLATE_TOKENS


def most_usage(content: Messages, system: str | None, max_tokens: int) -> Usage:
    """An upper bound on the tokens that a request takes."""
    return Usage(most_tokens(content, system), max_tokens)


def usage_of(row: dict[str, Any]) -> Usage:
    """The tokens that a ledger's answer took; an upper bound if the API did not say."""
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    if prompt is None:
        prompt = most_tokens(row["content"], row.get("system"))
    if completion is None:
        completion = row.get("max_tokens") or len((row["text"] or "").encode())
    return Usage(prompt, completion)


def _texts(content: Messages, system: str | None) -> list[str]:
    return ([system] if system else []) + [turn["content"] for turn in content]
