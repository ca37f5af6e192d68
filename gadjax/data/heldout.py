"""Which prompts are held out: chosen by a hash of the chat, so that all answers to a prompt are on the same side."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable

from gadjax.data.chats import Messages

_RANKS = 2**64


def rank(chat: Messages, purpose: str = "") -> float:
    """A number from 0 to 1 that depends on the roles and the texts of a chat alone, evenly spread over chats.

    Ranks for one purpose tell nothing of those for another: what is left after one choice can be divided again.
    """
    turns = [[message["role"], message["content"]] for message in chat]
    digest = hashlib.blake2b(json.dumps(turns).encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big") / _RANKS


def lowest(ranks: Iterable[float], count: int) -> set[float]:
    """The `count` lowest of the different ranks: those of the prompts to hold out."""
    return set(sorted(set(ranks))[:count])


def heldout_path(path: pathlib.Path) -> pathlib.Path:
    """The Parquet file of the held-out prompts' answers, beside that of the others."""
    return path.with_name(f"{path.stem}.heldout.parquet")
