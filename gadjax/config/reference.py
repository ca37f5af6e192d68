"""The config's fields as text: the values that a field takes, and the page docs/config.md, which --help prints too."""

from __future__ import annotations

import inspect
import textwrap
import typing
from typing import Any

from pydantic.fields import FieldInfo

from gadjax.config.fields import FIELDS, RunFields

_KINDS = {
    str: "text",
    bool: "True or False",
    int: "an integer",
    float: "a number",
    tuple: "a tuple of names",
    dict: "values by name",
}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "lt": "below {}", "le": "at most {}"}
_NOTE = "<!-- Written by `gadjax config --fields > docs/config.md` from gadjax/config/. Change it there. -->\n\n"


def kind(field: FieldInfo) -> str:
    """The type of a field's values, such as "an integer"."""
    return _KINDS[type(field.default)]


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values (or the names in a tuple) that a field may have, without ""; () if the field is free."""
    annotation = field.annotation
    if typing.get_origin(annotation) is dict:
        return ()
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    return tuple(name for name in typing.get_args(annotation) if name)


def bounds(field: FieldInfo) -> str:
    """The bounds of a number, such as "at least 0 and below 1"; "" if it has none."""
    given = ((text, getattr(bound, name, None)) for bound in field.metadata for name, text in _BOUNDS.items())
    return " and ".join(text.format(value) for text, value in given if value is not None)


def describe_fields(width: int = 120) -> str:
    """The fields as Markdown, section by section: values, default and description of each."""
    lines = ["# Fields of the config, each set as --config.FIELD=VALUE", *_section("", RunFields, width)]
    for name, field in RunFields.model_fields.items():
        if name not in FIELDS:
            lines += ["", f"## {name}", *_section(name, field.annotation, width)]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/config.md."""
    return _NOTE + describe_fields()


def _section(section: str, declared: Any, width: int) -> list[str]:
    lines = ["", *textwrap.wrap(inspect.getdoc(declared) or "", width), ""]
    for name, field in FIELDS.items():
        if name.rpartition(".")[0] != section:
            continue
        names = ", ".join(choices(field))
        if isinstance(field.default, tuple):
            values, default = f"names among {names}", ",".join(field.default)
        else:
            values, default = names or ", ".join(filter(None, (kind(field), bounds(field)))), str(field.default)
        item = f"- `{name}` ({values}; default {default or repr('')}): {' '.join((field.description or '').split())}"
        lines += textwrap.wrap(item, width, subsequent_indent="  ", break_on_hyphens=False)
    return lines
