"""A file of lines that one process at a time appends to, and that a kill at any moment leaves whole."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from gadjax.errors import UserError
from gadjax.files import keeping, lock

Row = TypeVar("Row")


class AppendLog:
    """The open file, locked until `close`.

    An appended line has left the process at once and survives its death; `sync` makes lines survive the machine's.
    """

    def __init__(self, path: str | os.PathLike[str], writer: str):
        """
        Args:
          path: of the file; made where it is absent.
          writer: the command that writes it, for the message to a second one.

        Raises:
          UserError: the file cannot be opened, or another process holds it.
        """
        self.path = pathlib.Path(path)
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            lock(self._file, f"{self.path}: another {writer} writes it; wait for it to end")
        except BaseException:
            self._file.close()
            raise
        self._end = 0
        self._unsynced = False

    def read(self, parse: Callable[[bytes], Row | None]) -> Iterator[tuple[int, Row]]:
        """All lines, each with its place; the torn last one of a kill is cut off. Once, before anything is appended.

        Args:
          parse: makes something of a line, or None of one that is not whole.

        Raises:
          UserError: a line other than a torn last one is damaged.
        """
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            row = parse(line)
            if not line.endswith(b"\n"):
                if row is None:
                    self._file.truncate(self._end)
                    return
                # Torn in its very last byte: whole, and paid for.
                self._file.write(b"\n")
                line += b"\n"
            if row is None:
                raise UserError(f"{self.path}:{number}: the line is damaged; mend or remove it, then run again")
            start, self._end = self._end, self._end + len(line)
            yield start, row

    def line(self, place: int) -> bytes:
        """The line at a place."""
        self._file.seek(place)
        return self._file.readline()

    def append(self, text: str) -> int:
        """Writes a line, and gives its place.

        Raises:
          UserError: the file cannot be written.
        """
        line = text.encode() + b"\n"
        with keeping(self.path):
            self._file.write(line)
            self._file.flush()
        start, self._end = self._end, self._end + len(line)
        self._unsynced = True
        return start

    def sync(self) -> None:
        """Puts what was appended on the disk; may take milliseconds.

        Raises:
          UserError: the disk does not take it.
        """
        if self._unsynced:
            with keeping(self.path):
                os.fsync(self._file.fileno())
            self._unsynced = False

    def close(self) -> None:
        """Lets go of the file, once what was appended is on the disk."""
        with keeping(self.path):
            try:
                self.sync()
            finally:
                self._file.close()
