"""Chat templates as a run needs them: given by text or file, with arguments and date fixed in the text itself."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from gadjax.errors import UserError
from gadjax.files import expand

TEMPLATE_FLAG = "--config.data.chat_template"
# Llama 3.1's own default: what its template prints where no date is known.
DEFAULT_DATE = "2024-07-26"

_MARK, _END = "gadjax pins", "{# end of pins #}"
_HASH = "\\u0023"
_PINNED = re.compile(rf"\A\{{# {_MARK} ([^\n]*) #\}}\n.*?\n{re.escape(_END)}\n", re.DOTALL)
_RESERVED = ("messages", "add_generation_prompt")  # what transformers passes itself, beside the special tokens

_STRFTIME_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def pin(template: str, args: Mapping[str, Any], date: str | None) -> str:
    """The template with a beginning that fixes its arguments and its date, wherever it is rendered.

    So an export gives transformers the prompts that the student learned on. What the beginning of an earlier `pin`
    fixed stays, unless it is given anew. Who passes an argument to the template gets that one.

    Args:
      template: Jinja, as transformers renders it.
      args: JSON values by name.
      date: "YYYY-MM-DD", for templates that print one; if None, that of an earlier `pin`, else `DEFAULT_DATE`.

    Raises:
      UserError: the date is none, or a name cannot be that of an argument.
    """
    earlier = _PINNED.match(template)
    pins = json.loads(earlier[1]) if earlier else {}
    template = template[earlier.end() :] if earlier else template
    args = pins.get("args", {}) | dict(args)
    for name in args:
        if not name.isidentifier() or name in _RESERVED or name.endswith("_token"):
            raise UserError(f"--config.data.template_args: {name!r} cannot be an argument of a template; leave it out")
    day = parse_date(date or pins.get("date") or DEFAULT_DATE)
    defaults = {"date_string": day.strftime("%d %b %Y")} if "date_string" in template else {}
    lines = [_fixed_clock(template, day)] if "strftime_now" in template else []
    dated = bool(lines or defaults)
    lines += [_default(name, value) for name, value in (defaults | args).items()]
    if not lines:
        return template
    pins = ({"date": day.isoformat()} if dated else {}) | {"args": args}
    # "#" could end the comment. The line breaks after tags vanish in the rendering.
    mark = f"{{# {_MARK} {json.dumps(pins).replace('#', _HASH)} #}}"
    return "\n".join([mark, *lines, _END, template])


def _fixed_clock(template: str, day: datetime.date) -> str:
    """Replaces the clock that transformers gives to templates, `strftime_now(format)`, by `day`.

    A format that is not written out in the template makes the rendering fail with a message that says so.
    """
    formats = dict.fromkeys(match[2] for match in _STRFTIME_CALL.finditer(template))
    cases = "".join(
        f"{{%- if format == {json.dumps(text)} -%}}{{{{- {json.dumps(day.strftime(text))} -}}}}{{%- else -%}}"
        for text in formats
    )
    unknown = "{{- raise_exception('strftime_now with a computed format cannot be given a fixed date') -}}"
    return "{% macro strftime_now(format) -%}" + cases + unknown + "{%- endif -%}" * len(formats) + "{%- endmacro %}"


def _default(name: str, value: Any) -> str:
    return f"{{% if {name} is not defined or {name} is none %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"


def _literal(value: Any) -> str:
    """A JSON value in Jinja, which has no `null` and reads escapes as Python does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


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
        return expand(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path can have this name
        raise UserError(f"{TEMPLATE_FLAG}={given}: neither a Jinja template nor a file with one ({error})") from error
