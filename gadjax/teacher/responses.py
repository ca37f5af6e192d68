"""What an OpenAI-compatible API sends back: an answer in a body, a time to wait in a header."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

from gadjax.teacher.ledger import Answer


def parse_answer(body: bytes) -> Answer:
    """The answer in a response's body; ValueError where there is none."""
    try:
        response = json.loads(body)
    except ValueError:
        raise ValueError(f"no JSON but {body[:80]!r}") from None
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise ValueError(f"no message in {body[:80]!r}")
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
        created=created if isinstance(created, int) and created > 0 else int(time.time()),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number or a date)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0)
