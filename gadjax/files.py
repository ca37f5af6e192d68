"""Files that users name: where they lie, and outputs that are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from gadjax.errors import UserError


def expand(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, its leading "~" replaced by the home folder: no shell does that behind --NAME=."""
    return pathlib.Path(os.path.expanduser(path))


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a place is an address such as gs://BUCKET/FOLDER, not a path of this machine."""
    return "://" in os.fspath(path)


def parse_json(text: str, *, constants: bool = True) -> Any:
    """What JSON text holds; NaN and Infinity, which Python writes, only where `constants` are allowed.

    Raises:
      ValueError: whatever is wrong with it, also nesting that Python cannot follow.
    """
    try:
        return json.loads(text, parse_constant=None if constants else _refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


@contextlib.contextmanager
def whole_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name beside `path` to write to; what is there at the end takes the place of `path`, at once.

    Where the block fails, nothing of it is left, and `path` is as it was.

    Raises:
      UserError: `path` is a folder, or cannot be replaced.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    try:
        yield partial
        with writing(path):
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: pathlib.Path, flag: str = "--out=") -> Iterator[None]:
    """What the block cannot write is a `UserError` that names the flag and its path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag}{path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def keeping(path: pathlib.Path) -> Iterator[None]:
    """What the block cannot write to a file of a run or a ledger, which a rerun goes on with, is a `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); make room there, and run again") from None


def lock(file: IO[bytes], refusal: str) -> None:
    """Locks an open file for this process, until it is closed or the process is gone.

    A file system that has no locks gives none.

    Raises:
      UserError: `refusal`, where another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(refusal) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def replace(path: pathlib.Path, content: bytes) -> None:
    """Gives a file new content, whole or not at all."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
