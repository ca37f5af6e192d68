"""What an OpenAI-compatible API sends back: an answer in a body, a time to wait in a header."""

from __future__ import annotations

import email.utils
import json
import math
import time
from typing import Any

from gadjax.teacher.ledger import Answer

SHOWN_BYTES = 2000  # of a body, in messages; more than are left of one, so that no key is cut where it would be masked


def parse_answer(body: bytes) -> Answer:
    """The answer in a response's body; ValueError where there is none."""
    try:
        response = json.loads(body)
    except ValueError:
        raise ValueError(f"no JSON but {body[:SHOWN_BYTES]!r}") from None
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise ValueError(f"no message in {body[:SHOWN_BYTES]!r}")
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, str | None):
        raise ValueError(f"the message's content is {type(text).__name__}, not text")
    if not text and isinstance(refusal, str):
        text = refusal
    text = (text or "").encode("utf-8", "replace").decode()  # half surrogate pairs, which no file can keep
    reason = choice.get("finish_reason")
    if refusal:
        reason = "refusal"
    elif not text.strip() and reason in (None, "stop"):
        # An answer without text; training leaves it out by this mark.
        reason = "error"
    usage = response.get("usage") if isinstance(response.get("usage"), dict) else {}
    created = response.get("created")
    return Answer(
        text=text,
        finish_reason=reason if isinstance(reason, str) else None,
        created=created if isinstance(created, int) and 0 < created < 2**63 else int(time.time()),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    """The number where it can be one of tokens, and a column of int32 can hold it."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number, or a date, of the server's clock)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value).timestamp()
            sent = headers.get("date")
            seconds = until - (email.utils.parsedate_to_datetime(sent).timestamp() if sent else time.time())
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(seconds, 0.0)
