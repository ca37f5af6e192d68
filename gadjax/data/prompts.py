"""Reads prompts, for the teacher or a student, from files of any known format, plain text, or a dataset by its name."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gadjax.data import hub_dataset, sources, tfds
from gadjax.data.chats import Messages, encodes, read_chat, role_of
from gadjax.data.dataset_name import HUB, TFDS, parse
from gadjax.data.formats import ANY, Format, Recogniser, is_own_prompt
from gadjax.data.table_files import Placed, filled, has_columns, open_columns, read_text_rows, rows_of
from gadjax.errors import UserError

_MORE = ("id", "category")  # columns beside those of a format


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One chat to answer."""

    id: str
    content: Messages  # ends with a user turn
    category: str | None = None


class PromptRow(NamedTuple):
    """A prompt with its row, the row's place for messages (`FILE:LINE` or `FILE: row N`), and its format."""

    prompt: Prompt
    place: str
    row: dict[str, Any]
    format: Format


def read_prompts(
    path: str | os.PathLike[str], *, flag: str = "--prompts", say: Callable[[str], None] = lambda line: None
) -> list[Prompt]:
    """The prompts of a file, a folder, a glob or a dataset, in its order.

    Rows hold `prompt` (text, or a chat) or `content` (a chat that ends with a user turn), and may hold `id` and
    `category`. Of rows of other formats (`gadjax.data.formats`) the chat before the answer is taken. A text file holds
    one prompt per line. A row without an id gets one from its content, so answers stay with their prompts if the order
    changes. Rows with one id and one chat, such as several answers to a prompt, are one prompt.

    Args:
      path: of a file of a kind of `gadjax.data.table_files`, or of several; or a dataset's name,
        `hf:OWNER/NAME/SPLIT:FIELD` (`hub_dataset`) or `tfds:NAME/SPLIT:FIELD` (`tfds`). FIELD holds text, or chats,
        whose turns behind the last user turn are left out. Without FIELD, the rows are as in a file.
      flag: names the path in messages.
      say: takes a line for each format other than gadjax's own, with the number of rows that were taken for it.

    Raises:
      UserError: names the file and the line (from 1) or row (from 0).
    """
    found = read_prompt_rows(path, flag=flag)
    for label, rows in Counter(one.format.label for one in found if not is_own_prompt(one.format)).items():
        say(f"{os.fspath(path)}: {rows} prompts of {len(found)} taken for {label}")
    return [one.prompt for one in found]


def read_prompt_rows(
    path: str | os.PathLike[str], columns: Sequence[str] = (), *, flag: str = "--prompts"
) -> list[PromptRow]:
    """The prompts as by `read_prompts`, each with its row; the first row, if several answer one prompt.

    Args:
      columns: more columns to read, with the file's own values. `teacher_response` stands for the answer of any
        format; a row without an answer lacks it then. TFDS has no missing values: empty text, or a number
        below 0, stands for one.
    """
    found: list[PromptRow] = []
    known: dict[str, tuple[str, Messages]] = {}
    unnamed: Counter[str] = Counter()
    for place, row, form in _rows(path, columns, flag):
        answered = "teacher_response" in columns and form.answer != "teacher_response"
        content, answers = split(row, place, form, answers=answered)
        if answered and answers[0] is not None:
            row = row | {"teacher_response": answers[0]}
        name = text_of(row, "id", place)
        if name is None:
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            unnamed[digest] += 1
            name = digest if unnamed[digest] == 1 else f"{digest}-{unnamed[digest]}"
        if name in known:
            place_before, content_before = known[name]
            if content == content_before:  # another answer to the prompt
                continue
            raise UserError(f"{place}: id {name!r} is that of {place_before} too; ids must differ")
        known[name] = place, content
        category = row.get("category")
        category = text_of(row, "category", place) if isinstance(category, str) else None
        found.append(PromptRow(Prompt(name, content, category), place, row, form))
    if not found:
        raise UserError(f"{os.fspath(path)}: the file holds no prompts")
    return found


def _rows(
    path: str | os.PathLike[str], columns: Sequence[str], flag: str
) -> Iterator[tuple[str, dict[str, Any], Format]]:
    """The rows of files or of a dataset, each with its place and its format."""
    name, recogniser = os.fspath(path), Recogniser(prompts=True)
    is_dataset = name.startswith((HUB, TFDS))
    if is_dataset and (field := parse(name).field):
        for place, row in _rows_of_field(name, field, columns):
            yield place, row, recogniser.of_row(row, place)
        return
    for file in sources.find(path, flag):
        for place, row, form in _rows_of_file(file, columns, recogniser):
            if is_dataset:  # empty text stands for none
                row = {column: value for column, value in row.items() if value != "" or column in columns}
            yield place, row, form


def _rows_of_file(
    file: str, columns: Sequence[str], recogniser: Recogniser
) -> Iterator[tuple[str, dict[str, Any], Format]]:
    if file.startswith(TFDS):
        for place, row in tfds.examples(file, (*ANY, *_MORE, *columns)):
            present = {column: value for column, value in row.items() if value != ""}
            yield place, row, recogniser.of_row(present, place)
    elif has_columns(file):
        with open_columns(file) as opened:
            form = recogniser.of(opened.schema.names, filled(opened.schema), file)
            needed = [column for column in form.columns if column != form.answer or "teacher_response" in columns]
            table = opened.read((*needed, *_MORE, *columns))
        for place, row in rows_of(file, table):
            yield place, row, form
    else:
        for place, row in read_text_rows(file):
            yield place, row, recogniser.of_row(row, place)


def _rows_of_field(name: str, field: str, columns: Sequence[str]) -> Iterator[Placed]:
    """The rows of a dataset whose prompts are in one column, in the form of a prompt file's rows."""
    wanted = (field, "category", *columns)
    if name.startswith(TFDS):
        rows: Iterator[Placed] = tfds.examples(name, wanted, (field,))
    else:
        rows = itertools.chain.from_iterable(_columns_of(file, wanted, field) for file in hub_dataset.files(name))
    for place, row in rows:
        more = {column: row[column] for column in columns if column in row and column != field}
        yield place, _of_field(row, field, place) | more


def _columns_of(file: pathlib.Path, wanted: Sequence[str], field: str) -> Iterator[Placed]:
    with open_columns(file) as opened:
        if field not in opened.schema.names:
            raise UserError(f"{file}: no column `{field}`; the file has {', '.join(opened.schema.names)}")
        table = opened.read(wanted)
    yield from rows_of(file, table)


def _of_field(row: dict[str, Any], field: str, place: str) -> dict[str, Any]:
    """A dataset's row in the form of a prompt file's row."""
    value = row[field]
    if isinstance(value, str):
        prompt: dict[str, Any] = {"prompt": value}
    elif isinstance(value, list):
        turns = len(value)
        while turns and role_of(value[turns - 1]) == "assistant":
            turns -= 1
        prompt = {"content": value[:turns]}
    else:
        raise UserError(f"{place}: `{field}` is {type(value).__name__}; expected text, or a chat")
    category = row.get("category")
    return prompt | ({"category": category} if isinstance(category, str) and category else {})


def split(row: dict[str, Any], place: str, form: Format, *, answers: bool = True) -> tuple[Messages, list[str | None]]:
    """A row's prompt, which ends with the user, and its answers, as `Format.split`; errors as by that and `chat_of`."""
    if is_own_prompt(form):
        return chat_of(row, place), form.answers(row, place) if answers else []
    chat, found = form.split(row, place, answers=answers)
    return _check_chat(chat, place), found


def chat_of(row: dict[str, Any], place: str) -> Messages:
    """The chat of a row: its `content`, or its `prompt`, text or a chat; raises a `UserError` if it has none."""
    prompt, content = row.get("prompt"), row.get("content")
    if not isinstance(prompt, list):
        prompt = text_of(row, "prompt", place)
    if (prompt is None) == (content is None):
        found = "neither `prompt` nor `content` is" if prompt is None else "both `prompt` and `content` are"
        raise UserError(f"{place}: {found} there; give one of them")
    if isinstance(prompt, str):
        return _check_chat([{"role": "user", "content": prompt}], place)
    column = "content" if prompt is None else "prompt"
    return _check_chat(read_chat(row[column], place, column), place)


def _check_chat(chat: Messages, place: str) -> Messages:
    """The chat itself; raises a `UserError` if a turn is empty, or if it does not end with the user."""
    if not chat:
        raise UserError(f"{place}: the chat is empty before the answer")
    if chat[-1]["role"] != "user":
        raise UserError(f"{place}: the chat ends with the {chat[-1]['role']}; it must end with a user turn")
    for turn in chat:
        if not turn["content"].strip():
            raise UserError(f"{place}: the {turn['role']}'s text is empty")
        _check_encodes(turn["content"], f"{place}: the {turn['role']}'s text")
    return chat


def text_of(row: dict[str, Any], field: str, place: str) -> str | None:
    """The text of a row's field, or None. A number is allowed as an id; raises a `UserError` for other values."""
    value = row.get(field)
    if field == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: `{field}` is {type(value).__name__}; expected text")
    if value is not None:
        _check_encodes(value, f"{place}: `{field}`")
    return value


def _check_encodes(text: str, what: str) -> None:
    if not encodes(text):
        raise UserError(f"{what} holds half of a surrogate pair; remove it")
