"""The OpenAI chat API apart from its connection: fields of requests, contents of responses, and URLs."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import math
import re
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from gadjax.errors import UserError
from gadjax.files import parse_json
from gadjax.teacher.ledger import LedgerEntry

# Bytes of a body in a message, which `TeacherClient.clean` shortens further after it has masked the key.
SHOWN_BYTES = 2000
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")  # two names for the longest answer in tokens
_OWN = ("model", "messages", "temperature", "top_p", "seed", "n", "stream", *LIMIT_FIELDS)  # set by gadjax
_LEFT_OUT = ("temperature", "top_p")  # set by gadjax, but refused by some models


@dataclasses.dataclass(frozen=True)
class RequestSettings:
    """How the teacher draws its answers."""

    temperature: float | None  # None, here and below: the field is not sent
    top_p: float | None
    max_tokens: int
    seed: int | None = None


def request_fields(given: str | Mapping[str, Any] | None, flag: str) -> tuple[dict[str, Any], frozenset[str]]:
    """The fields to add to requests, and the names of gadjax's own fields to leave out.

    Args:
      given: a JSON object, as text or as a mapping; null leaves a field out.
      flag: names `given` in messages.

    Raises:
      UserError: `given` is no JSON object, or sets a field that gadjax sets.
    """
    try:
        fields = parse_json(given or "{}") if isinstance(given, str | None) else dict(given)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # Python reads more than a request can hold
    except (ValueError, TypeError) as error:
        raise UserError(f"{flag}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f'{flag}: expected a JSON object, such as \'{{"reasoning_effort": "low"}}\'')
    left_out = frozenset(name for name in _LEFT_OUT if name in fields and fields[name] is None)
    more = {name: value for name, value in fields.items() if name not in left_out}
    for name in _OWN:
        if name in more:
            raise UserError(f"{flag}: {name} has a flag of its own, or is gadjax's to choose; leave it out")
    return {name: value for name, value in more.items() if value is not None}, left_out


def parse_answer(body: bytes) -> LedgerEntry:
    """The answer in a response's body; raises ValueError if there is none."""
    try:
        response = json.loads(body)
    except ValueError:
        raise ValueError(f"no JSON but {body[:SHOWN_BYTES]!r}") from None
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError(f"no message in {body[:SHOWN_BYTES]!r}")
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, str | None):
        raise ValueError(f"the message's content is {type(text).__name__}, not text")
    if not text and isinstance(refusal, str):
        text = refusal
    text = (text or "").encode("utf-8", "replace").decode()  # no file can keep half a surrogate pair
    reason = choice.get("finish_reason")
    if refusal:
        reason = "refusal"
    elif not text.strip() and reason in (None, "stop"):
        reason = "error"  # so that training leaves out an answer without text
    usage = response.get("usage") if isinstance(response.get("usage"), dict) else {}
    created = response.get("created")
    return LedgerEntry(
        text=text,
        finish_reason=reason if isinstance(reason, str) else None,
        created=created if isinstance(created, int) and 0 < created < 2**63 else int(time.time()),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    """`value` if it is a number of tokens that an int32 column can hold, else None."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait, or None (RFC 9110, 10.2.3: a number, or a date by the server's clock)."""
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


def parse_url(base_url: str) -> urllib.parse.SplitResult:
    """The parts of an HTTP URL; raises a `UserError` for another text."""
    reason = ""
    try:
        url = urllib.parse.urlsplit(base_url)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and base_url.isprintable()
        valid = valid and url.port != 0  # `port` raises for a bad one
    except ValueError as error:
        valid, reason = False, f"{error}; "
    if not valid:
        raise bad_url(base_url, reason)
    return url


def bad_url(base_url: str, reason: str) -> UserError:
    """The error for a URL that cannot be used."""
    if "@" in base_url:
        reason = ""  # it may quote a part of the password
    return UserError(f"--base_url={without_login(base_url)}: {reason}expected a URL such as http://127.0.0.1:8000/v1")


def without_login(url: str) -> str:
    """The URL, valid or not, without user and password: all before its last @ is left out."""
    return re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL)
