"""A cache on disk for results that cost money or time: an append-only JSONL file of rows with keys."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

from gadjax.append_log import AppendLog
from gadjax.errors import UserError


def digest(*parts: Any) -> str:
    """A key of 32 hexadecimal digits for JSON values; equal values give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class ResultCache:
    """Rows by key; a context manager that holds the file's lock.

    A row is on the disk when `add` returns: neither a kill nor a power cut loses it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the file, which is made with its folder if it is absent.

        Raises:
          UserError: it cannot be opened, another process holds it, or a line is damaged that is not a torn last one.
        """
        path = pathlib.Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self._log = AppendLog(path, "gadjax.evaluate")
        self._rows: dict[str, dict[str, Any]] = {}
        try:
            for _, (key, row) in self._log.read(_parse):
                self._rows.setdefault(key, row)
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> ResultCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def add(self, rows: dict[str, dict[str, Any]]) -> None:
        """Appends rows by key; a key that is already there keeps its row."""
        new = {key: row for key, row in rows.items() if key not in self._rows}
        for key, row in new.items():
            self._log.append(json.dumps({"key": key} | row, allow_nan=False))
        self._log.sync()
        self._rows |= new


def _parse(line: bytes) -> tuple[str, dict[str, Any]] | None:
    try:
        row = json.loads(line)
        return str(row.pop("key")), row
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
