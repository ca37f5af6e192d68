"""What was paid for or took long, kept as it arrives: an append-only JSONL file, by key."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pathlib
from typing import Any

from gadjax.errors import UserError


def digest(*parts: Any) -> str:
    """Names what `parts`, JSON values, describe: equal parts give the same 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """Rows by key; a context manager that holds the file's lock.

    A row is on the disk when `add` returns: neither a kill nor a power cut loses it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """
        Args:
          path: of the file; made, with its folder, where it is absent.

        Raises:
          UserError: it cannot be opened, another process holds it, or a line other than a torn last one is damaged.
        """
        self.path = pathlib.Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._rows = self._read()
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{self.path}: another gadjax.evaluate writes it; wait for it to end") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def add(self, rows: dict[str, dict[str, Any]]) -> None:
        """Appends rows, by key; those of a key that is there already stay as they were first."""
        new = {key: row for key, row in rows.items() if key not in self._rows}
        for key, row in new.items():
            self._file.write(json.dumps({"key": key} | row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows |= new

    def _read(self) -> dict[str, dict[str, Any]]:
        """All rows, once the torn last line of a kill is cut off."""
        rows: dict[str, dict[str, Any]] = {}
        start = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            whole = line.endswith(b"\n")
            try:
                row = json.loads(line)
                rows.setdefault(str(row.pop("key")), row)
            except (ValueError, KeyError, AttributeError, TypeError):
                if whole:
                    raise UserError(f"{self.path}:{number}: the line is damaged; remove it, then run again") from None
                self._file.truncate(start)
                break
            if not whole:  # torn in its very last byte
                self._file.write(b"\n")
            start += len(line)
        return rows
