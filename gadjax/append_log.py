"""A file of lines that one process at a time appends to, and that a kill at any moment leaves readable."""

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

    An appended line is handed to the system at once, so that it survives this process; `sync` makes it survive the
    machine. A line's place is the offset of its first byte in the file.
    """

    def __init__(self, path: str | os.PathLike[str], writer: str):
        """
        Args:
          path: of the file, which is created if it does not exist.
          writer: the command that writes the file; a second process that opens it is told this name.

        Raises:
          UserError: the file cannot be opened, or another process has locked it.
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
        self._end = self._file.seek(0, os.SEEK_END)
        self._unsynced = False

    def read(self, parse: Callable[[bytes], Row | None]) -> Iterator[tuple[int, Row]]:
        """Yields the place of every line and what `parse` makes of it. Call it once, before anything is appended.

        A last line that a kill tore in two is removed from the file.

        Args:
          parse: turns a line into a row, or returns None if the line is not whole.

        Raises:
          UserError: a line other than a torn last one is damaged.
        """
        self._file.seek(0)
        place = 0
        for number, line in enumerate(self._file, start=1):
            row = parse(line)
            if not line.endswith(b"\n"):
                if row is None:
                    self._file.truncate(place)
                    self._end = place
                    return
                # Only the line's end is missing: the row is whole and is kept, since it may have been paid for.
                self._file.write(b"\n")
                line += b"\n"
                self._end += 1
            if row is None:
                raise UserError(f"{self.path}:{number}: the line is damaged; mend or remove it, then run again")
            yield place, row
            place += len(line)

    def line(self, place: int) -> bytes:
        """The line at a place."""
        self._file.seek(place)
        return self._file.readline()

    def append(self, text: str) -> int:
        """Appends a line, and returns its place.

        Raises:
          UserError: the file cannot be written.
        """
        line = text.encode() + b"\n"
        with keeping(self.path):
            self._file.write(line)
            self._file.flush()
        place, self._end = self._end, self._end + len(line)
        self._unsynced = True
        return place

    def sync(self) -> None:
        """Waits until every appended line is on the disk, which may take milliseconds.

        Raises:
          UserError: the disk does not take it.
        """
        if self._unsynced:
            with keeping(self.path):
                os.fsync(self._file.fileno())
            self._unsynced = False

    def close(self) -> None:
        """Syncs the file, closes it and gives up the lock.

        Raises:
          UserError: the disk does not take what was appended.
        """
        with keeping(self.path):
            try:
                self.sync()
            finally:
                self._file.close()
