"""Named sets of prompts, with the teacher's answers where a file holds them and how those were sampled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from gadjax.data.chats import CUT_REASONS, Messages, status_of
from gadjax.data.prompts import Prompt, PromptRow, read_prompt_rows, text_of
from gadjax.errors import UserError
from gadjax.evaluation.model_sources import check_name
from gadjax.files import expand, parse_json

DISPLAY_NAMES = {"lmsys": "LMSYS", "dolly": "Dolly", "self_instruct": "SelfInst", "vicuna": "Vicuna"}
_NUMBERS = ("temperature", "top_p")
SAMPLING_COLUMNS = (*_NUMBERS, "system", "request_fields")
# Fields of requests that truncate or change the teacher's distribution, with the values that do not.
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
_ANSWER_COLUMNS = ("teacher_response", "finish_reason", *SAMPLING_COLUMNS)
_REFERENCE_COLUMNS = ("response", "teacher_response")


@dataclasses.dataclass(frozen=True)
class TeacherSampling:
    """How a set's answers were sampled.

    Attributes:
      values: by column of `SAMPLING_COLUMNS`: each value in the file, with the place of the first row that has it.
    """

    values: Mapping[str, Mapping[Any, str]] = dataclasses.field(default_factory=dict)

    @property
    def temperatures(self) -> Mapping[float, str]:
        """The temperatures, with places; empty if the file does not say."""
        return self.values.get("temperature", {})

    def check(self, flag: str, temperature: float | None) -> None:
        """Refuses answers that were not sampled from the teacher's whole distribution at one temperature.

        Args:
          flag: the beginning of a message, which names the flag and the set.
          temperature: the temperature that is required; None for any.

        Raises:
          UserError: naming the first row that was sampled in another way.
        """
        begin = f"{flag} was collected"
        for value, place in self.values.get("top_p", {}).items():
            if value < 1:
                raise UserError(f"{begin} with top_p < 1, whose KL is infinite ({place}); use drawn")
        for value, place in self.values.get("system", {}).items():
            shown = repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
            raise UserError(
                f"{begin} with a system prompt, {shown} ({place}), which the models are not given; use drawn"
            )
        for text, place in self.values.get("request_fields", {}).items():
            for name, value in _fields(text, place).items():
                if name in _NEUTRAL and value not in _NEUTRAL[name]:
                    what = f"{name}={json.dumps(value)} ({place})"
                    why = "its answers are not drawn from the teacher's whole distribution"
                    raise UserError(f"{begin} with {what}: {why}; use drawn")
        if len(self.temperatures) > 1:
            several = f"several temperatures, {_listed(self.temperatures.items())}"
            raise UserError(f"{begin} at {several}, but a KL is of one; split the set, or use drawn")
        for value, place in self.temperatures.items():
            if temperature not in (None, value):
                raise UserError(f"{begin} at temperature {value:g}; give it as --teacher_temperature ({place})")


def sampling_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> TeacherSampling:
    """How answers were sampled, read from rows with their places.

    Raises:
      UserError: a value cannot be used; the message names its row.
    """
    values: dict[str, dict[Any, str]] = {}
    for place, row in rows:
        for name in SAMPLING_COLUMNS:
            if (value := _value(name, row.get(name), place)) is not None:
                values.setdefault(name, {}).setdefault(value, place)
    return TeacherSampling(values)


def common_temperature(sets: Mapping[str, TeacherSampling], flag: str) -> float:
    """The one temperature of all sets, or 1 if their files do not say.

    Args:
      sets: how answers were sampled, by set.
      flag: the flag that is missing if there are several temperatures, for the message.

    Raises:
      UserError: the files have several temperatures.
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


def other_temperatures(sets: Mapping[str, TeacherSampling], temperature: float, flag: str) -> list[str]:
    """A warning for each set whose file has another temperature than the flag."""
    return [
        f"warning: {flag}={temperature:g}, but the set {name} was collected at {value:g} ({place})"
        for name, of_set in sets.items()
        for value, place in of_set.temperatures.items()
        if value != temperature
    ]


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer: its text, why it ended, and its number of tokens if it is known."""

    text: str
    finish_reason: str | None
    tokens: int | None = None

    @property
    def cut(self) -> bool:
        """Whether a limit cut it."""
        return self.finish_reason in CUT_REASONS


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A named set of prompts.

    Attributes:
      sha256: of the file, or of prompts and answers if they are not from a file.
      teacher: the teacher's answer to each prompt, None if it gave none; None for a set without answers.
      sampling: how the answers were sampled, as far as the file says.
    """

    name: str
    path: str
    sha256: str
    prompts: list[Prompt]
    teacher: list[Response | None] | None
    sampling: TeacherSampling = dataclasses.field(default_factory=TeacherSampling)

    @property
    def chats(self) -> list[Messages]:
        """The prompts as chats."""
        return [prompt.content for prompt in self.prompts]

    @property
    def answered(self) -> list[int]:
        """The numbers of the prompts that the teacher answered."""
        return [i for i, answer in enumerate(self.teacher or ()) if answer is not None]

    def check_sampling(self, temperature: float | None) -> None:
        """Refuses answers that were not sampled from the whole distribution at this temperature (None: at any one).

        Raises:
          UserError: there are no answers, or they were sampled in another way.
        """
        flag = f"--kl_forward=given: the set {self.name}"
        if self.teacher is None:
            raise UserError(f"{flag} has no teacher's answers; use drawn, or leave the set out")
        self.sampling.check(flag, temperature)


def read_set(name: str, path: str | os.PathLike[str], *, max_prompts: int = 0) -> PromptSet:
    """Reads a set of prompts, with the teacher's answers if its rows have `teacher_response`, or those of a format.

    An answer is left out if the teacher's API marked it as none (a refusal, a filter) or cut it before it began; its
    prompt stays. If a prompt has several answers (`sample`), the first is taken.

    Args:
      name: of the set.
      path: anything that `read_prompts` reads.
      max_prompts: takes the first so many; 0 takes all.

    Raises:
      UserError: something cannot be used; the message names the set's flag, or the file and its row.
    """
    check_name(name, "--sets")
    found = read_prompt_rows(path, _ANSWER_COLUMNS, flag=f"--sets={name}")
    answered = any("teacher_response" in one.row for one in found)
    teacher = [_teacher_answer(one) for one in found] if answered else None
    if max_prompts:
        found, teacher = found[:max_prompts], teacher and teacher[:max_prompts]
    if teacher is not None and not any(teacher):
        raise UserError(f"--sets={name}={path}: all of the teacher's answers are marked as no answer (`finish_reason`)")
    rows = [(one.place, one.row) for one, answer in zip(found, teacher or (), strict=False) if answer]
    prompts = [one.prompt for one in found]
    return PromptSet(name, os.fspath(path), _sha256(path, prompts, teacher), prompts, teacher, sampling_of(rows))


def _sha256(path: str | os.PathLike[str], prompts: list[Prompt], teacher: list[Response | None] | None) -> str:
    file = expand(path)
    if file.is_file():
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    whole: list[Any] = [dataclasses.asdict(prompt) for prompt in prompts]
    whole += [answer and {"text": answer.text, "ended": not answer.cut} for answer in teacher or ()]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def read_references(path: str | os.PathLike[str], prompts: PromptSet) -> list[str]:
    """Reference answers to a set's prompts, from a file with `response`, or with the answers of a format.

    An answer is found by its chat. If several rows have the chat, the one with the prompt's id is taken. Ids alone
    count only if no chat of the file is in the set, as when its chats have another system turn: files that are numbered
    on their own have the same ids for other prompts.

    Raises:
      UserError: a row or a prompt has no answer; the message names it and the file.
    """
    flag = f"--references={prompts.name}"
    given = read_prompt_rows(path, _REFERENCE_COLUMNS, flag=flag)
    if not any(one.row.get(column) is not None for one in given for column in _REFERENCE_COLUMNS):
        raise UserError(f"{flag}={path}: expected rows with `response`, or with the answers of another format")
    by_both: dict[Any, str] = {}
    by_chat: dict[str, str] = {}
    by_id: dict[Any, str] = {}
    for prompt, place, row, _ in given:
        text = next(filter(None, (text_of(row, column, place) for column in _REFERENCE_COLUMNS)), "")
        if not text.strip():
            raise UserError(f"{place}: `response` is missing or empty; a reference has text")
        chat = json.dumps(prompt.content)
        by_both[prompt.id, chat] = by_id[prompt.id] = text
        by_chat.setdefault(chat, text)
    chats = [json.dumps(chat) for chat in prompts.chats]
    if not by_chat.keys().isdisjoint(chats):
        by_id = {}  # the file has chats of the set, so its ids do not count
    found = []
    for prompt, chat in zip(prompts.prompts, chats, strict=True):
        text = by_both.get((prompt.id, chat)) or by_chat.get(chat) or by_id.get(prompt.id)
        if text is None:
            raise UserError(f"{flag}={path}: the file has no answer to prompt {prompt.id!r} of the set")
        found.append(text)
    return found


def _teacher_answer(found: PromptRow) -> Response | None:
    place, row = found.place, found.row
    text = text_of(row, "teacher_response", place)
    status = status_of(text, row.get("finish_reason"))
    if status == "marked":
        return None
    if not (text or "").strip():
        raise UserError(f"{place}: `teacher_response` is missing or empty; give every row of the file one, or none")
    return Response(text, "length" if status == "cut" else "stop")


def _value(name: str, value: Any, place: str) -> Any:
    """A row's value in a form that can be compared; None if it has none."""
    if name in _NUMBERS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # TFDS holds float32, and a negative number for a missing one.
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
