"""Answers to prompts, appended as they come to a file that a later process goes on with, and the settings they have."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gadjax import files
from gadjax.append_log import AppendLog
from gadjax.errors import UserError

Settings = Mapping[str, str | int | float | bool | None]


def check_settings(out: pathlib.Path, held: Iterable[pathlib.Path], settings: Settings) -> None:
    """Keeps the settings beside `out`, or compares them with those of the answers that are there.

    Args:
      out: the file of --out. Its settings are in a file with ".settings.json" behind its name.
      held: the files that answers with these settings may be in; absent and empty ones hold none.
      settings: all that the answers depend on, by the flag that says so.

    Raises:
      UserError: there are answers with other or unknown settings.
    """
    beside = out.with_name(out.name + ".settings.json")
    there = [path for path in held if path.exists() and path.stat().st_size]
    if not there:
        with files.writing(beside, ""):
            files.replace(beside, json.dumps(dict(settings), indent=2).encode() + b"\n")
        return
    names = " and ".join(map(str, there))
    try:
        before = files.parse_json(beside.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("no object")
    except (OSError, ValueError):
        raise UserError(
            f"--out={out}: {names} is there, but {beside} does not say how its answers were drawn; give another name, "
            f"or remove {names}"
        ) from None
    different = [
        f"--{name}: {before.get(name)} before, {settings.get(name)} now"
        for name in dict.fromkeys([*settings, *before])
        if before.get(name) != settings.get(name)
    ]
    if different:
        raise UserError(
            f"--out={out}: {names} holds answers with other settings ({'; '.join(different)}); give another name, or "
            f"remove {names}"
        )


class AnswerFile:
    """A JSONL file with one row for each prompt, by the prompt's `id`; a context manager that holds the file's lock.

    A row that is appended survives the death of the process.
    """

    def __init__(self, path: pathlib.Path, ids: Sequence[str], fields: Sequence[str]):
        """
        Args:
          path: of the file; made if it is absent.
          ids: of the prompts, in their order.
          fields: that every row has.

        Raises:
          UserError: the file cannot be opened, or another process holds it.
        """
        self.path, self._ids, self._fields = path, {name: place for place, name in enumerate(ids)}, {"id", *fields}
        self._log = AppendLog(path, "gadjax.generate")
        self._places: dict[int, int] = {}  # of a prompt: where its row is in the file

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def read(self) -> None:
        """Finds the rows that are there. Call it once, before anything is appended.

        A last row that a kill tore in two is removed from the file.

        Raises:
          UserError: another row is damaged, or of no such prompt.
        """
        for where, place in self._log.read(self._parse):
            self._places.setdefault(place, where)

    @property
    def kept(self) -> set[int]:
        """The places of the prompts that have a row."""
        return set(self._places)

    def row(self, place: int) -> dict[str, Any]:
        """The row of a prompt."""
        return json.loads(self._log.line(self._places[place]))

    def append(self, place: int, row: Mapping[str, Any]) -> None:
        """Appends a prompt's row; raises a `UserError` if the file cannot be written."""
        self._places[place] = self._log.append(json.dumps(row, ensure_ascii=False))

    def sort(self) -> None:
        """Puts the rows into the order of the prompts, in one step. Nothing can be read or appended afterwards.

        Raises:
          UserError: the file cannot be written.
        """
        where = [self._places[place] for place in sorted(self._places)]
        if where != sorted(where):
            with files.keeping(self.path):
                files.replace(self.path, b"".join(map(self._log.line, where)))

    def _parse(self, line: bytes) -> int | None:
        """The place of the prompt of a row, or None if the line is no whole row."""
        try:
            row = json.loads(line)
            return self._ids[row["id"]] if self._fields <= set(row) else None
        except (ValueError, KeyError, TypeError):
            return None
