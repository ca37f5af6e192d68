"""The forms in which rows of chats and answers come: how a row's columns tell its format, and how it is read.

A row is of the format whose columns it has. gadjax's own come first. If a row has the columns of two others, which
could differ, it is refused, because a guess would train on the wrong text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any

from gadjax.data.chats import Messages, read_chat
from gadjax.errors import UserError

Row = dict[str, Any]
ChatReader = Callable[[Row, str], Messages]


@dataclasses.dataclass(frozen=True, eq=False)
class Format:
    """One form of a row.

    Attributes:
      name: what the format is called.
      prompt: the column of the prompt, or of the whole chat.
      answer: the column of the answer; None if there is no such column.
      chat: reads a row's chat.
      more: columns that are read if they are there.
      in_chat: whether the answer is the chat's last turn, if that is the assistant's.
    """

    name: str
    prompt: str
    answer: str | None
    chat: ChatReader
    more: tuple[str, ...] = ()
    in_chat: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a row of this format has, if it has an answer."""
        return (self.prompt, self.answer) if self.answer else (self.prompt,)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.needs, *self.more)

    @property
    def label(self) -> str:
        """The name and the columns, for people."""
        shown = ", ".join(f"`{column}`" for column in self.needs)
        return f"{self.name}, {shown}"

    @property
    def no_answer(self) -> str:
        """What is wrong with a row whose answer is null."""
        if self.answer:
            return f"`{self.answer}` is null"
        return f"the chat in `{self.prompt}` does not end with the assistant, so it has no answer"

    def split(self, row: Row, place: str, *, answers: bool = True) -> tuple[Messages, list[str | None]]:
        """The chat before the answer, and the answers: one, or several to one prompt; None stands for no answer.

        Args:
          row: a row of this format.
          place: of the row, for messages.
          answers: whether answers are wanted; a column of answers is not looked at otherwise.

        Raises:
          UserError: a value of the row is not of the format.
        """
        chat = self.chat(row, place)
        if not self.in_chat:
            return chat, self.answers(row, place) if answers else []
        if chat[-1]["role"] == "assistant":
            return chat[:-1], [chat[-1]["content"]]
        return chat, [None]

    def answers(self, row: Row, place: str) -> list[str | None]:
        """The answers in the column for them; a `UserError` if they are of another type."""
        return _answers(row.get(self.answer), place, self.answer) if self.answer else [None]


def _answers(value: Any, place: str, column: str) -> list[str | None]:
    """The answers of a column's value: text, several texts, or a chat of one turn, the assistant's."""
    if value is None or isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(entry, str) for entry in value):
            return list(value)
        chat = read_chat(value, place, column)
        if len(chat) == 1 and chat[0]["role"] == "assistant":
            return [chat[0]["content"]]
        raise UserError(
            f"{place}: `{column}` is a chat of {len(chat)} turns; expected text, or one turn of the assistant"
        )
    raise UserError(f"{place}: `{column}` is {type(value).__name__}; expected text, or one turn of the assistant")


def _chat_in(column: str) -> ChatReader:
    """Reads the chat of a column."""
    return lambda row, place: read_chat(row.get(column), place, column)


def _text_or_chat_in(column: str) -> ChatReader:
    """Reads a column that holds a user's text, or a chat."""

    def read(row: Row, place: str) -> Messages:
        value = row.get(column)
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if isinstance(value, list):
            return read_chat(value, place, column)
        found = "null" if value is None else type(value).__name__
        raise UserError(f"{place}: `{column}` is {found}; expected text, or a chat")

    return read


def _sharegpt(row: Row, place: str) -> Messages:
    return _system(row, place) + read_chat(row.get("conversations"), place, "conversations")


def _alpaca(row: Row, place: str) -> Messages:
    """`system`, the pairs of `history`, and a user's turn: `instruction`, a blank line, and `input` if there is one."""
    chat = _system(row, place)
    for pair in row.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{place}: `history` must be a list of pairs of texts, [[PROMPT, ANSWER], ...]")
        chat += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    instruction = _text(row, "instruction", place)
    more = _text(row, "input", place)
    if instruction is None:
        raise UserError(f"{place}: `instruction` is null; expected text")
    return [*chat, {"role": "user", "content": f"{instruction}\n\n{more}" if more else instruction}]


def _system(row: Row, place: str) -> Messages:
    """The turn of a column `system`, none if it is empty."""
    text = _text(row, "system", place)
    return [{"role": "system", "content": text}] if text else []


def _text(row: Row, column: str, place: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: `{column}` is {type(value).__name__}; expected text")
    return value


TEACHER = Format("gadjax's own", "content", "teacher_response", _chat_in("content"))
# In the order in which a row is compared with them.
FORMATS = (
    TEACHER,
    Format("gadjax's own", "prompt", "teacher_response", _text_or_chat_in("prompt")),
    Format("OpenAI", "messages", None, _chat_in("messages"), in_chat=True),
    Format("ShareGPT", "conversations", None, _sharegpt, ("system",), in_chat=True),
    Format("TRL", "prompt", "completion", _text_or_chat_in("prompt")),
    Format("prompts with responses", "prompt", "response", _text_or_chat_in("prompt")),
    Format("Alpaca", "instruction", "output", _alpaca, ("input", "system", "history")),
    Format("questions with answers", "question", "answer", _text_or_chat_in("question")),
)
_OWN = FORMATS[:2]  # the formats that go before all others
OWN_PROMPTS = ("prompt", "content")  # columns of gadjax's own files of prompts, which need no answers
# Prompts of gadjax's own, whose rows may have either column. `gadjax.data.prompts` reads them.
_PROMPTS = {
    answer: Format("prompts", "prompt", answer, _text_or_chat_in("prompt"), ("content",))
    for answer in ("teacher_response", "completion", "response", None)
}
ANY = tuple(dict.fromkeys(column for form in FORMATS for column in form.columns))
"""Every column that some format reads."""


def is_own_prompt(form: Format) -> bool:
    """Whether the format is that of gadjax's own files of prompts."""
    return form.name == "prompts"


class Recogniser:
    """Tells the format of rows by their columns."""

    def __init__(self, columns: str = "", *, optional: bool = False, prompts: bool = False) -> None:
        """Makes one.

        Args:
          columns: names the columns instead: PROMPT,ANSWER, or one column of chats that end with the answer.
          optional: whether rows may lack the columns that are named.
          prompts: whether rows may lack an answer.

        Raises:
          UserError: `columns` has another form.
        """
        self.named = _named(columns) if columns else None
        self._optional = optional
        self._prompts = prompts
        self._known: dict[tuple[str, ...], Format] = {}

    def of_row(self, row: Row, place: str) -> Format:
        """The format of a row; raises a `UserError` that names the place if there is none."""
        filled = [name for name, value in row.items() if value is not None]
        key = (*row, "", *filled)
        if key not in self._known:
            self._known[key] = self.of(row, filled, place)
        return self._known[key]

    def of(self, names: Collection[str], filled: Collection[str], where: str) -> Format:
        """The format of rows with these columns.

        Args:
          names: of all columns.
          filled: of those that are not null alone, which are looked at first.
          where: the file or the row, for messages.

        Raises:
          UserError: there is none, or there are two whose answers could differ.
        """
        if self.named:
            lacking = [name for name in self.named.needs if name not in names]
            if not lacking:
                return self.named
            if not self._optional:
                raise UserError(
                    f"{where}: no column `{lacking[0]}`, which config.data.columns names; there is "
                    f"{_listed(names) or 'none'}"
                )
        for pool in (filled, names):
            if found := self._choose(set(pool), where):
                return found
        if self._prompts:
            others = _listed(dict.fromkeys(form.prompt for form in FORMATS if form.prompt not in OWN_PROMPTS))
            raise UserError(
                f"{where}: neither `prompt` nor `content` is there; give one of them, or a column of another format ("
                f"{others}); there is {_listed(names) or 'no column'}"
            )
        raise UserError(
            f"{where}: {', '.join(names) or 'no columns'}: rows of no known format; expected "
            f"{', or '.join(_listed(form.needs, ' and ') for form in FORMATS)}; training also takes "
            "--config.data.columns=PROMPT,ANSWER"
        )

    def _choose(self, names: set[str], where: str) -> Format | None:
        if self._prompts and names.intersection(OWN_PROMPTS):
            # `response` beside a chat in `content` is a student's answer, as gadjax.generate writes it.
            answers = [a for a in ("completion", "response") if a in names and "prompt" in names]
            own = "teacher_response" in names
            return _PROMPTS["teacher_response" if own else answers[0] if len(answers) == 1 else None]
        found = [form for form in FORMATS if names.issuperset(form.needs)]
        if self._prompts and not found:
            found = [form for form in FORMATS if form.prompt in names]
        if len(found) > 1 and found[0] not in _OWN:
            several = " and ".join(f"{form.name} ({_listed(form.needs)})" for form in found)
            remedy = "keep one of them" if self._prompts else "name one, such as --config.data.columns="
            remedy += "" if self._prompts else ",".join(found[0].needs)
            raise UserError(f"{where}: the columns of several formats are there, {several}: {remedy}")
        return found[0] if found else None


def _named(columns: str) -> Format:
    names = [name.strip() for name in columns.split(",")]
    if not 1 <= len(names) <= 2 or not all(names):
        raise UserError(
            f"config.data.columns is {columns!r}; expected PROMPT,ANSWER, two columns of the data, or one column of "
            "chats that end with the answer"
        )
    if len(names) == 1:
        return Format("data.columns", names[0], None, _chat_in(names[0]), in_chat=True)
    return Format("data.columns", names[0], names[1], _text_or_chat_in(names[0]))


def _listed(names: Iterable[str], joint: str = ", ") -> str:
    return joint.join(f"`{name}`" for name in names)
