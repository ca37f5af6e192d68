"""Prompts, for the teacher or a student, from JSONL, Parquet or plain text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from gadjax.errors import UserError

Messages = list[dict[str, str]]  # each {"role": ..., "content": ...}

_ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One chat for the teacher to answer."""

    id: str
    content: Messages  # ends with a user turn
    category: str | None = None


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads prompts in the order of the file.

    JSONL and Parquet rows hold `prompt` (text) or `content` (a chat that ends with a user turn), and may hold
    `id` and `category`; a text file holds one prompt a line. A row without an id gets one made from its
    content, so that answers stay with their prompts when the file's order changes.

    Raises:
      UserError: naming the file and the line (counted from 1) or row (from 0).
    """
    path = pathlib.Path(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".txt": _read_text}
    if path.suffix not in readers:
        raise UserError(f"--prompts={path}: expected a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"--prompts={path}: no such file")
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    unnamed: Counter[str] = Counter()
    for place, row in readers[path.suffix](path):
        content = _content(row, place)
        name = _text(row, "id", place)
        if name is None:
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            unnamed[digest] += 1
            name = digest if unnamed[digest] == 1 else f"{digest}-{unnamed[digest]}"
        if name in places:
            raise UserError(f"{place}: id {name!r} is that of {places[name]} too; ids must differ")
        places[name] = place
        prompts.append(Prompt(name, content, _text(row, "category", place)))
    if not prompts:
        raise UserError(f"{path}: the file holds no prompts")
    return prompts


def _read_jsonl(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(row, dict):
            raise UserError(f'{place}: expected an object such as {{"prompt": "..."}}')
        yield place, row


def _read_text(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in _lines(path):
        yield place, {"prompt": line.strip()}


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8 ({error.reason})") from None
            if text.strip():
                yield place, text


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in ("id", "prompt", "content", "category") if name in names]
            if not {"prompt", "content"} & set(wanted):
                raise UserError(f"{path}: no column `prompt` or `content`; the file has {', '.join(names)}")
            rows = file.read(columns=wanted).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error})") from None
    for number, row in enumerate(rows):
        yield f"{path}: row {number}", row


def _content(row: dict[str, Any], place: str) -> Messages:
    prompt = _text(row, "prompt", place)
    if row.get("content") is None:
        if prompt is None:
            raise UserError(f"{place}: neither `prompt` nor `content` is there; give one of them")
        content = [{"role": "user", "content": prompt}]
    elif prompt is not None:
        raise UserError(f"{place}: both `prompt` and `content` are there; give one of them")
    else:
        content = _chat(row["content"], place)
    for turn in content:
        if not turn["content"].strip():
            raise UserError(f"{place}: the {turn['role']}'s text is empty")
        if not _encodes(turn["content"]):
            raise UserError(f"{place}: the {turn['role']}'s text holds half of a surrogate pair; remove it")
    return content


def _chat(chat: Any, place: str) -> Messages:
    if not isinstance(chat, list) or not chat:
        raise UserError(f"{place}: `content` must be a list of messages, at least one")
    for turn in chat:
        text = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(text, str) or turn.get("role") not in _ROLES:
            raise UserError(
                f"{place}: a message of `content` is not of the form "
                f'{{"role": ..., "content": TEXT}} with a role of {", ".join(_ROLES)}'
            )
    if chat[-1]["role"] != "user":
        raise UserError(f"{place}: the chat ends with the {chat[-1]['role']}; it must end with a user turn")
    return [{"role": turn["role"], "content": turn["content"]} for turn in chat]


def _text(row: dict[str, Any], field: str, place: str) -> str | None:
    value = row.get(field)
    if field == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: `{field}` is {type(value).__name__}; expected text")
    return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
