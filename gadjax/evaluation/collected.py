"""How the teacher's answers of a set were collected, as far as their file says: what a KL and a test stand on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from gadjax.errors import UserError
from gadjax.files import parse_json

_NUMBERS = ("temperature", "top_p")
COLUMNS = (*_NUMBERS, "system", "request_fields")
# Fields of requests by which an answer is not one of the teacher's whole distribution, and the values that do nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "logit_bias": (None, {}),
}
_SHOWN = 40  # characters of a system prompt in a message


@dataclasses.dataclass(frozen=True)
class Collected:
    """Of a set's answers: each value of each of `COLUMNS`, with the place of the first row that has it."""

    values: Mapping[str, Mapping[Any, str]] = dataclasses.field(default_factory=dict)

    @property
    def temperatures(self) -> Mapping[float, str]:
        """The temperatures, with places; empty where the file does not say."""
        return self.values.get("temperature", {})

    def check(self, flag: str, temperature: float | None) -> None:
        """Refuses answers that the teacher's whole distribution at one temperature would not have given.

        Args:
          flag: how a message begins: of what use the answers are, and which set it is.
          temperature: that it must be; None for any.

        Raises:
          UserError: naming the first row that was collected in another way.
        """
        for value, place in self.values.get("top_p", {}).items():
            if value < 1:
                raise UserError(f"{flag} was collected with top_p < 1, whose KL is infinite ({place}); use drawn")
        for value, place in self.values.get("system", {}).items():
            shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
            raise UserError(
                f"{flag} was collected with a system prompt, {shown!r} ({place}), which the models are not given; "
                "use drawn"
            )
        for text, place in self.values.get("request_fields", {}).items():
            for name, value in _fields(text, place).items():
                if name in _NEUTRAL and value not in _NEUTRAL[name]:
                    raise UserError(
                        f"{flag} was collected with {name}={json.dumps(value)} ({place}): its answers are not drawn "
                        "from the teacher's whole distribution; use drawn"
                    )
        if len(self.temperatures) > 1:
            raise UserError(
                f"{flag} was collected at several temperatures, {_listed(self.temperatures.items())}, but a KL is of "
                "one; split the set, or use drawn"
            )
        for value, place in self.temperatures.items():
            if temperature not in (None, value):
                raise UserError(
                    f"{flag} was collected at temperature {value:g}; give it as --teacher_temperature ({place})"
                )


def collected(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Collected:
    """What the rows, each with its place, say of how they were collected.

    Raises:
      UserError: a value cannot be used, naming its row.
    """
    values: dict[str, dict[Any, str]] = {name: {} for name in COLUMNS}
    for place, row in rows:
        for name in COLUMNS:
            if (value := _value(name, row.get(name), place)) is not None:
                values[name].setdefault(value, place)
    return Collected({name: found for name, found in values.items() if found})


def common_temperature(sets: Mapping[str, Collected], flag: str) -> float:
    """The one temperature of the sets' files, 1 where they do not say.

    Args:
      sets: by name.
      flag: that would say it.

    Raises:
      UserError: the files have several.
    """
    known: dict[float, str] = {}
    for name, of_set in sets.items():
        for value, place in of_set.temperatures.items():
            known.setdefault(value, f"{name}, {place}")
    if len(known) > 1:
        raise UserError(
            f"{flag} is missing: the teacher's answers were collected at several temperatures, "
            f"{_listed(known.items())}; give the one that is meant, or evaluate the sets apart"
        )
    return next(iter(known), 1.0)


def other_temperatures(sets: Mapping[str, Collected], temperature: float, flag: str) -> list[str]:
    """A warning, in words, for each set whose file has another temperature than the flag says."""
    return [
        f"warning: {flag}={temperature:g}, but the set {name} was collected at {value:g} ({place})"
        for name, of_set in sets.items()
        for value, place in of_set.temperatures.items()
        if value != temperature
    ]


def _value(name: str, value: Any, place: str) -> Any:
    """A row's value as one that can be compared; None where there is none."""
    if name in _NUMBERS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # TFDS keeps float32, and a number below 0 for none.
        return round(float(value), 6) if number and value >= 0 else None
    if name == "request_fields" and isinstance(value, dict):
        value = json.dumps(value, sort_keys=True)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: `{name}` is {type(value).__name__}; expected text")
    return value or None


def _fields(text: str, place: str) -> dict[str, Any]:
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise UserError(f"{place}: `request_fields` is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: `request_fields` is {type(fields).__name__}; expected a JSON object")
    return fields


def _listed(values: Iterable[tuple[float, str]]) -> str:
    return " and ".join(f"{value:g} ({where})" for value, where in sorted(values))
