"""The ledger: an append-only file of every answer received, so that none is asked, and paid for, twice.

A line holds the answer with all that it answers, so that it is a row of the Parquet without the file of prompts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from gadjax.errors import UserError

Key = tuple[str, str]  # a prompt's id, the fingerprint of the request


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the teacher said to one prompt."""

    text: str
    finish_reason: str | None
    created: int  # Unix seconds
    prompt_tokens: int | None
    completion_tokens: int | None


class Ledger:
    """A JSONL file of answers, by key in the order of arrival; a context manager that holds the file's lock.

    An appended line has left the process at once and survives its death; `sync` makes lines survive the
    machine's. Only places of answers are kept in memory, not their text.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """
        Args:
          path: of the ledger; made where it is absent.

        Raises:
          UserError: the file cannot be opened, another process holds it, or a line other than a torn last
            one is damaged.
        """
        self.path = pathlib.Path(path)
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._places, self._end = self._read()
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{self.path}: another gadjax.collect writes it; wait for it to end") from None
        except BaseException:
            self._file.close()
            raise
        self._unsynced = False

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        self._file.close()

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The fields of the answer and of its question."""
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())

    def append(self, key: Key, answer: Answer, question: dict[str, Any]) -> None:
        """Writes one answer with what was asked, and how; it has left the process when this returns."""
        row = {"id": key[0], "fingerprint": key[1]} | dataclasses.asdict(answer) | question
        line = json.dumps(row).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._places[key] = self._end
        self._end += len(line)
        self._unsynced = True

    def sync(self) -> None:
        """Puts what was appended on the disk; may take milliseconds."""
        if self._unsynced:
            os.fsync(self._file.fileno())
            self._unsynced = False

    def _read(self) -> tuple[dict[Key, int], int]:
        """Places of all answers, and the file's end once the torn last line of a kill is cut off."""
        places: dict[Key, int] = {}
        start = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            key = _key(line)
            if not line.endswith(b"\n"):
                if key is None:
                    self._file.truncate(start)
                    break
                # Torn in its very last byte: whole, and paid for.
                self._file.write(b"\n")
                line += b"\n"
            if key is None:
                raise UserError(f"{self.path}:{number}: the line is damaged; mend or remove it, then run again")
            places.setdefault(key, start)
            start += len(line)
        return places, start


def _key(line: bytes) -> Key | None:
    """The key of a line, or None where the line holds no whole answer."""
    try:
        row: Any = json.loads(line)
        whole = "content" in row and all(field.name in row for field in dataclasses.fields(Answer))
        return (str(row["id"]), str(row["fingerprint"])) if whole else None
    except (ValueError, KeyError, TypeError):
        return None
