"""How many tokens a request takes, before a teacher whose tokenizer is not here has counted them."""

from __future__ import annotations

import math

from gadjax.data.schema import Messages

CHARACTERS_A_TOKEN = 4  # of English text under the common byte-level BPE vocabularies; code and other scripts take more
_TURN_TOKENS = 4  # of a chat template around one turn
_MOST_TURN_TOKENS = 16
_MOST_TEMPLATE_TOKENS = 64  # around the chat: an opening, a date, a system prompt that the server puts in by itself


def expected_tokens(content: Messages, system: str | None = None) -> int:
    """Tokens of a chat, estimated from its characters."""
    texts = _texts(content, system)
    return math.ceil(sum(map(len, texts)) / CHARACTERS_A_TOKEN) + _TURN_TOKENS * len(texts)


def most_tokens(content: Messages, system: str | None = None) -> int:
    """Tokens that a chat is below: a byte-level vocabulary has no token of less than a byte."""
    texts = _texts(content, system)
    return sum(len(text.encode()) for text in texts) + _MOST_TURN_TOKENS * len(texts) + _MOST_TEMPLATE_TOKENS


def _texts(content: Messages, system: str | None) -> list[str]:
    return ([system] if system else []) + [turn["content"] for turn in content]
