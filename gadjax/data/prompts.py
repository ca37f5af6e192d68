"""Reads prompts, for the teacher or a student, from JSONL, Parquet, plain text, or a dataset by its name."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gadjax.data import hub_dataset, tfds
from gadjax.data.dataset_name import HUB, TFDS, parse
from gadjax.data.parquet import open_parquet
from gadjax.data.schema import ROLES, Messages
from gadjax.errors import UserError, first_line
from gadjax.files import expand, parse_json

_ONE_OF = ("prompt", "content")
_COLUMNS = ("id", "category", "sample", *_ONE_OF)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One chat to answer."""

    id: str
    content: Messages  # ends with a user turn
    category: str | None = None


class PromptRow(NamedTuple):
    """A prompt with its row, and the row's place for messages: `FILE:LINE` or `FILE: row N`."""

    prompt: Prompt
    place: str
    row: dict[str, Any]


def read_prompts(path: str | os.PathLike[str], *, flag: str = "--prompts") -> list[Prompt]:
    """The prompts of a file or dataset, in its order.

    Rows of JSONL and Parquet hold `prompt` (text) or `content` (a chat that ends with a user turn), and may hold `id`
    and `category`. A text file holds one prompt per line. A row without an id gets one from its content, so answers
    stay with their prompts if the order changes. A teacher's rows with several answers to one prompt (`sample`) are
    one prompt.

    Args:
      path: of the file; or a dataset's name, `hf:OWNER/NAME/SPLIT:FIELD` (`hub_dataset`) or `tfds:NAME/SPLIT:FIELD`
        (`tfds`). FIELD holds text, or chats, whose turns behind the last user turn are left out. Without FIELD, the
        rows are as in a file.
      flag: names the path in messages.

    Raises:
      UserError: names the file and the line (from 1) or row (from 0).
    """
    return [found.prompt for found in read_prompt_rows(path, flag=flag)]


def read_prompt_rows(
    path: str | os.PathLike[str], columns: Sequence[str] = (), *, flag: str = "--prompts"
) -> list[PromptRow]:
    """The prompts as by `read_prompts`, each with its row; the first row, if several answer one prompt.

    Args:
      columns: more columns to read, with the file's own values. TFDS has no missing values: empty text, or a number
        below 0, stands for one.
    """
    found: list[PromptRow] = []
    known: dict[str, tuple[str, Messages]] = {}
    unnamed: Counter[str] = Counter()
    for place, row in _rows(path, columns, flag):
        content = chat_of(row, place)
        name = text_of(row, "id", place)
        if name is None:
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            unnamed[digest] += 1
            name = digest if unnamed[digest] == 1 else f"{digest}-{unnamed[digest]}"
        if name in known:
            place_before, content_before = known[name]
            if row.get("sample") is not None and content == content_before:
                continue
            raise UserError(f"{place}: id {name!r} is that of {place_before} too; ids must differ")
        known[name] = place, content
        found.append(PromptRow(Prompt(name, content, text_of(row, "category", place)), place, row))
    if not found:
        raise UserError(f"{os.fspath(path)}: the file holds no prompts")
    return found


def _rows(path: str | os.PathLike[str], columns: Sequence[str], flag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file or a dataset, each with its place."""
    name = os.fspath(path)
    field = parse(name).field if name.startswith((HUB, TFDS)) else None
    own, one_of = ((field, "category"), (field,)) if field else (_COLUMNS, _ONE_OF)
    wanted = tuple(dict.fromkeys((*own, *columns)))
    if name.startswith((HUB, TFDS)):
        if name.startswith(TFDS):
            rows = tfds.examples(name, wanted, one_of)
        else:
            files = hub_dataset.files(name)
            rows = itertools.chain.from_iterable(read_columns(file, wanted, one_of) for file in files)
        for place, row in rows:
            more = {column: row[column] for column in columns if column in row and column != field}
            yield place, _of_field(row, field, place) | more
        return
    path = expand(path)
    readers = {".jsonl": read_jsonl, ".parquet": lambda path: read_columns(path, wanted, one_of), ".txt": _read_text}
    if path.suffix not in readers:
        raise UserError(
            f"{flag}={path}: expected a file that ends in {', '.join(readers)}, or a dataset as hf:OWNER/NAME/SPLIT "
            "or tfds:NAME/SPLIT"
        )
    if not path.is_file():
        raise UserError(f"{flag}={path}: no such file")
    yield from readers[path.suffix](path)


def _of_field(row: dict[str, Any], field: str | None, place: str) -> dict[str, Any]:
    """A dataset's row in the form of a prompt file's row."""
    if field is None:
        return {name: row[name] for name in _COLUMNS if row.get(name) not in (None, "")}  # "": missing in TFDS
    value = row[field]
    if isinstance(value, str):
        prompt: dict[str, Any] = {"prompt": value}
    elif isinstance(value, list):
        turns = len(value)
        while turns and isinstance(value[turns - 1], dict) and value[turns - 1].get("role") == "assistant":
            turns -= 1
        prompt = {"content": value[:turns]}
    else:
        raise UserError(f"{place}: `{field}` is {type(value).__name__}; expected text, or a chat")
    category = row.get("category")
    return prompt | ({"category": category} if isinstance(category, str) and category else {})


def read_jsonl(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place for messages, `FILE:LINE`."""
    for place, line in _lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{place}: not JSON ({reason})") from None
        if not isinstance(row, dict):
            raise UserError(f'{place}: expected an object such as {{"prompt": "..."}}')
        yield place, row


def _read_text(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in _lines(path):
        yield place, {"prompt": line.strip()}


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8 ({error.reason})") from None
            if text.strip():
                yield place, text


def read_columns(
    path: pathlib.Path, wanted: Sequence[str], one_of: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, each with its place; a row holds the `wanted` columns that the file has.

    Raises:
      UserError: the file has none of `one_of`, or cannot be read. Names the file and the column or row (from 0).
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if one_of and not set(one_of) & set(names):
            needed = " or ".join(f"`{name}`" for name in one_of)
            raise UserError(f"{path}: no column {needed}; the file has {', '.join(names)}")
        columns = [name for name in wanted if name in names]
        for name in columns:
            if names.count(name) > 1:
                raise UserError(f"{path}: column `{name}` is there {names.count(name)} times; keep one")
        table = file.read(columns=columns)
    for number in range(table.num_rows):
        place = f"{path}: row {number}"
        try:
            row = {name: table[name][number].as_py() for name in columns}
        except UnicodeDecodeError:
            raise UserError(f"{place}: text that is not valid UTF-8 (a lone surrogate?)") from None
        except ValueError as error:  # Python cannot hold the value: two fields of one name, a time beyond its calendar
            raise UserError(f"{place}: cannot be read ({first_line(error)}); leave it out") from None
        yield place, row


def chat_of(row: dict[str, Any], place: str) -> Messages:
    """The chat of a row: its `content`, or its `prompt` as a user turn; raises a `UserError` if it has none."""
    prompt, content = text_of(row, "prompt", place), row.get("content")
    if (prompt is None) == (content is None):
        found = "neither `prompt` nor `content` is" if prompt is None else "both `prompt` and `content` are"
        raise UserError(f"{place}: {found} there; give one of them")
    content = _chat(content, place) if prompt is None else [{"role": "user", "content": prompt}]
    for turn in content:
        if not turn["content"].strip():
            raise UserError(f"{place}: the {turn['role']}'s text is empty")
        _check_encodes(turn["content"], f"{place}: the {turn['role']}'s text")
    return content


def _chat(chat: Any, place: str) -> Messages:
    if not isinstance(chat, list) or not chat:
        raise UserError(f"{place}: `content` must be a list of messages, at least one")
    for turn in chat:
        text = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(text, str) or turn.get("role") not in ROLES:
            raise UserError(
                f"{place}: a message of `content` is not of the form "
                f'{{"role": ..., "content": TEXT}} with a role of {", ".join(ROLES)}'
            )
    if chat[-1]["role"] != "user":
        raise UserError(f"{place}: the chat ends with the {chat[-1]['role']}; it must end with a user turn")
    return [{"role": turn["role"], "content": turn["content"]} for turn in chat]


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
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} holds half of a surrogate pair; remove it") from None
