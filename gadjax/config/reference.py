"""The config's fields as text: what values a field takes, the list in `--help`, the page docs/config.md."""

from __future__ import annotations

import textwrap
import typing

from pydantic.fields import FieldInfo

from gadjax.config.fields import FIELDS, RunFields

_KINDS = {str: "text", bool: "True or False", int: "an integer", float: "a number", tuple: "a tuple of names"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "lt": "below {}"}
_PAGE = """# The fields of a config

<!-- Written by `python -m gadjax.config > docs/config.md` from gadjax/config/fields.py. Change it there. -->

A config is a Python file with `get_config()`, which starts from `configs/base.py` and overrides what it needs
(`config.gad.clip = 0.1`). Any field can also be set on the command line: `--config.gad.clip=0.1`. The defaults are the
paper's values (arXiv 2511.10643). `python -m gadjax.train --help` prints the same list.
"""


def kind(field: FieldInfo) -> str:
    """The type of a field's values, such as "an integer"."""
    return _KINDS[type(field.default)]


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values, or names in a tuple, that a field may have, without ""; () where it has no such list."""
    annotation = field.annotation
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    return tuple(name for name in typing.get_args(annotation) if name)


def bounds(field: FieldInfo) -> str:
    """The bounds of a number, such as "at least 0 and below 1"; "" where it has none."""
    given = ((text, getattr(bound, name, None)) for bound in field.metadata for name, text in _BOUNDS.items())
    return " and ".join(text.format(value) for text, value in given if value is not None)


def _values(field: FieldInfo) -> str:
    """What values a field takes, in a few words."""
    if names := choices(field):
        return ("names of: " if isinstance(field.default, tuple) else "") + ", ".join(names)
    return ", ".join(filter(None, (kind(field), bounds(field))))


def _default(field: FieldInfo) -> str:
    """A field's default as --config.FIELD takes it."""
    value = field.default
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _sections() -> list[tuple[str, str, dict[str, FieldInfo]]]:
    """Each section's name ("" for the run's own fields), description, and fields by their dotted names."""
    sections = {"": (RunFields.__doc__, {})}
    for name, field in RunFields.model_fields.items():
        if name not in FIELDS:
            sections[name] = (field.annotation.__doc__, {})
    for name, field in FIELDS.items():
        sections[name.rpartition(".")[0]][1][name] = field
    return [(name, " ".join(text.split()), fields) for name, (text, fields) in sections.items()]


def help_text(width: int = 80) -> str:
    """The fields for a terminal: a paragraph for each section and field."""
    lines = ["fields of the config, each set as --config.FIELD=VALUE:"]
    for _, text, fields in _sections():
        lines += ["", *textwrap.wrap(text, width)]
        for name, field in fields.items():
            lines.append(f"  {name} ({_values(field)}; default {_default(field) or repr('')})")
            lines += textwrap.wrap(field.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def page() -> str:
    """docs/config.md: a table for each section."""
    parts = [_PAGE]
    for section, text, fields in _sections():
        parts.append(f"\n## {section or 'The run'}\n\n{text}\n\n| field | values | default | |\n|---|---|---|---|\n")
        for name, field in fields.items():
            default = f"`{_default(field)}`" if _default(field) else ""
            cells = (f"`{name}`", _values(field), default, " ".join(field.description.split()))
            parts.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    return "".join(parts)
