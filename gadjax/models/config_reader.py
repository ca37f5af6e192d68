"""Typed access to the fields of a Hugging Face `config.json`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from gadjax.errors import UserError

_MOST, _MOST_LAYERS = 2**31 - 1, 9999  # larger values overflow shapes, or fill memory with tensors' names
_MOST_NUMBER = sys.float_info.max
_LAYER_KINDS = (FULL, SLIDING) = ("full_attention", "sliding_attention")


class Reader:
    """A config's fields. Errors name the file and the field; a null field counts as missing.

    Attributes:
      config: the contents of a `config.json`.
      where: its path, for messages.
    """

    def __init__(self, config: dict[str, Any], where: str):
        self.config, self.where = config, where

    def fail(self, problem: str) -> NoReturn:
        """Raises a `UserError` about the file."""
        raise UserError(f"{self.where}: {problem}")

    def count(self, name: str, default: int | None = None, fields: dict[str, Any] | None = None, least: int = 1) -> int:
        """An integer of at least `least`, of the config or of `fields`."""
        value = self._get(name, default, fields)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.fail(f"{name} is {value!r}; it must be an integer of at least {least}")
        most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST
        if value > most:
            self.fail(f"{name} is {value}; it must be an integer of at most {most}")
        return value

    def positive(self, name: str, default: float | None = None, fields: dict[str, Any] | None = None) -> float:
        """A finite number above 0, of the config or of `fields`."""
        value = self._get(name, default, fields)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.fail(f"{name} is {value!r}; it must be a number above 0")
        if value > _MOST_NUMBER:
            self.fail(f"{name} is {value}; it must be a finite number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.fail(f"{name} is {value!r}; it must be true or false")
        return value

    def positives(self, name: str, count: int, fields: dict[str, Any]) -> tuple[float, ...]:
        """A list of `count` numbers above 0, of `fields`."""
        values = self._get(name, None, fields)
        if not isinstance(values, list) or len(values) != count:
            self.fail(f"{name} must be a list of {count} numbers")
        return tuple(self.positive(name, fields={name: value}) for value in values)

    def refuse(self, name: str, why: str) -> None:
        """Refuses a config in which the field is set, to anything but null, false or 0."""
        if value := self.config.get(name):
            self.fail(f"{name} is {value!r}; {why}")

    def layer_kinds(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """The kind of each layer, "full_attention" or "sliding_attention", from `layer_types`."""
        kinds = self.config.get("layer_types")
        if kinds is None:
            return default
        if not isinstance(kinds, list):
            self.fail(f"layer_types is {kinds!r}; it must be a list with the kind of each layer")
        if len(kinds) != (layers := self.count("num_hidden_layers")):
            self.fail(f"layer_types has {len(kinds)} entries, but num_hidden_layers is {layers}")
        if other := [kind for kind in kinds if kind not in _LAYER_KINDS]:
            self.fail(f"layer_types has {other[0]!r}, which is not supported; supported are {', '.join(_LAYER_KINDS)}")
        return tuple(kinds)

    def _get(self, name: str, default: Any, fields: dict[str, Any] | None = None) -> Any:
        value = (self.config if fields is None else fields).get(name)
        value = default if value is None else value
        if value is None:
            self.fail(f"field {name} is missing")
        return value
