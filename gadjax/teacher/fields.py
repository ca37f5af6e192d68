"""Fields of a request beyond those that gadjax sets, and those of its own that a model does not take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gadjax.errors import UserError
from gadjax.files import parse_json

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")  # that say how long an answer may be
_OWN = ("model", "messages", "temperature", "top_p", "seed", "n", "stream", *LIMIT_FIELDS)
_LEFT_OUT = ("temperature", "top_p")  # own fields that a model may not take at all


def request_fields(given: str | Mapping[str, Any] | None, flag: str) -> tuple[dict[str, Any], frozenset[str]]:
    """More fields of requests, and those of our own to leave out.

    Args:
      given: a JSON object as text, or as a mapping; null leaves a field out.
      flag: that it comes from, for messages.

    Raises:
      UserError: it is no JSON object, or sets a field that has a flag of its own.
    """
    try:
        fields = parse_json(given or "{}") if isinstance(given, str | None) else dict(given)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # what Python reads and no request can hold
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
