"""Chat templates as a run needs them: given by text or file, and without a clock."""

from __future__ import annotations

import datetime
import json
import re

from gadjax.errors import UserError

TEMPLATE_FLAG = "--config.data.chat_template"
# Llama 3.1's own default: what its template prints where no date is known.
DEFAULT_DATE = "2024-07-26"

_STRFTIME_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def pin_date(template: str, day: datetime.date) -> str:
    """Replaces the clock that transformers gives to templates, `strftime_now(format)`, by `day`.

    A format that is not written out in the template makes the rendering fail with a message that says so.
    """
    if "strftime_now" not in template:
        return template
    formats = dict.fromkeys(match[2] for match in _STRFTIME_CALL.finditer(template))
    cases = "".join(
        f"{{%- if format == {json.dumps(text)} -%}}{{{{- {json.dumps(day.strftime(text))} -}}}}{{%- else -%}}"
        for text in formats
    )
    unknown = "{{- raise_exception('strftime_now with a computed format cannot be given a fixed date') -}}"
    return (
        "{%- macro strftime_now(format) -%}"
        + cases
        + unknown
        + "{%- endif -%}" * len(formats)
        + "{%- endmacro +%}"  # "+": leave the template's own first line break alone
        + template
    )


def parse_date(date: str) -> datetime.date:
    """The day that "YYYY-MM-DD" names.

    Raises:
      UserError: another form, or no such day.
    """
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"the chat template's date is {date!r}; expected YYYY-MM-DD") from error


def read_template(given: str) -> str:
    """The template itself: `given` as it is if it is Jinja, or the content of the file that it names.

    Raises:
      UserError: neither.
    """
    if "{" in given:
        return given
    try:
        with open(given, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{TEMPLATE_FLAG}={given}: neither a Jinja template nor a file with one ({error})") from error
