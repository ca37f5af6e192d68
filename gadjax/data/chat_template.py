"""Chat templates whose arguments and date are fixed in the text itself."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from gadjax.errors import UserError
from gadjax.files import expand

TEMPLATE_FLAG = "--config.data.chat_template"
DEFAULT_DATE = "2024-07-26"  # what Llama 3.1's template prints if it gets no date

_MARK, _END = "gadjax pins", "{# end of pins #}"
_HASH = "\\u0023"
_PINNED = re.compile(rf"\A\{{# {_MARK} ([^\n]*) #\}}\n.*?\n{re.escape(_END)}\n", re.DOTALL)
_RESERVED = ("messages", "add_generation_prompt")  # passed by transformers, as the special tokens are

_STRFTIME_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def pin(template: str, args: Mapping[str, Any], date: str | None) -> str:
    """The template with lines before it that fix its arguments and its date, wherever it is rendered.

    So transformers renders an export's prompts as the student learned them. Values from an earlier `pin` stay unless
    they are given again. A caller who passes an argument to the template overrides the fixed value.

    Args:
      template: Jinja, as transformers renders it.
      args: JSON values by name.
      date: "YYYY-MM-DD", for templates that print a date; None for the earlier `pin`'s, or else `DEFAULT_DATE`.

    Raises:
      UserError: the date has another form, or no argument can have one of the names.
    """
    earlier = _PINNED.match(template)
    pins = json.loads(earlier[1]) if earlier else {}
    template = template[earlier.end() :] if earlier else template
    values: dict[str, Any] = pins.get("args", {}) | dict(args)
    for name in values:
        if not name.isidentifier() or name in _RESERVED or name.endswith("_token"):
            raise UserError(f"--config.data.template_args: {name!r} cannot be an argument of a template; leave it out")
    day = parse_date(date or pins.get("date") or DEFAULT_DATE)
    defaults = {"date_string": day.strftime("%d %b %Y")} if "date_string" in template else {}
    lines = [_fixed_clock(template, day)] if "strftime_now" in template else []
    dated = bool(lines or defaults)
    lines += [_default(name, value) for name, value in (defaults | values).items()]
    if not lines:
        return template
    pins = ({"date": day.isoformat()} if dated else {}) | {"args": values}
    # Escape "#", which could end the comment. Rendering removes the line breaks after tags.
    mark = f"{{# {_MARK} {json.dumps(pins).replace('#', _HASH)} #}}"
    return "\n".join([mark, *lines, _END, template])


def _fixed_clock(template: str, day: datetime.date) -> str:
    """A macro that replaces `strftime_now(format)`, the clock that transformers gives to templates, by `day`.

    It knows the formats that are written out in the template; rendering fails for a computed one.
    """
    formats = dict.fromkeys(match[2] for match in _STRFTIME_CALL.finditer(template))
    cases = "".join(
        f"{{%- if format == {json.dumps(text)} -%}}{{{{- {json.dumps(day.strftime(text))} -}}}}{{%- else -%}}"
        for text in formats
    )
    unknown = "{{- raise_exception('strftime_now with a computed format cannot be given a fixed date') -}}"
    return "{% macro strftime_now(format) -%}" + cases + unknown + "{%- endif -%}" * len(formats) + "{%- endmacro %}"


def _default(name: str, value: Any) -> str:
    """Jinja that sets a variable if it has no value."""
    return f"{{% if {name} is not defined or {name} is none %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"


def _literal(value: Any) -> str:
    """A JSON value as Jinja, which has no `null` and reads escapes as Python does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def parse_date(date: str) -> datetime.date:
    """The day of a date "YYYY-MM-DD"; raises a `UserError` for another form, or if there is no such day."""
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"the chat template's date is {date!r}; expected YYYY-MM-DD") from error


def read_template(given: str) -> str:
    """`given` if it is a Jinja template, or the content of the file with this name; raises a `UserError` if neither."""
    if "{" in given:
        return given
    try:
        return expand(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path can have this name
        raise UserError(f"{TEMPLATE_FLAG}={given}: neither a Jinja template nor a file with one ({error})") from error
