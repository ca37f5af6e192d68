"""Files that users name: their paths, outputs that are whole or absent, errors as one line, locks."""

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
    """The path with a leading "~" replaced by the home folder, which shells do not do after --NAME=."""
    return pathlib.Path(os.path.expanduser(path))


def user_cache(name: str) -> pathlib.Path | None:
    """The folder of this name for what gadjax can make again, in XDG_CACHE_HOME or ~/.cache. It need not exist.

    None if the user has no home folder, as in a container under the id of an unknown user.
    """
    try:
        return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "gadjax" / name
    except RuntimeError:
        return None


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an address such as gs://BUCKET/FOLDER and not a path of this machine."""
    return "://" in os.fspath(path)


def parse_json(text: str, *, constants: bool = True) -> Any:
    """The value of a JSON text.

    Args:
      text: the JSON.
      constants: whether NaN and Infinity are accepted, which Python writes and JSON does not have.

    Raises:
      ValueError: the text is not JSON, or nests too deep for Python.
    """
    try:
        return json.loads(text, parse_constant=None if constants else _refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


@contextlib.contextmanager
def whole_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to, beside `path`; when the block ends, that file replaces `path` in one step.

    If the block fails, the file is removed and `path` is as it was.

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
    """Turns an `OSError` of the block into a `UserError` that names the flag and its path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag}{path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def keeping(path: pathlib.Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `UserError` about a file that the same command, run again, continues."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); make room there, and run again") from None


def lock(file: IO[bytes], refusal: str) -> None:
    """Locks an open file for this process until it is closed or the process ends.

    On a file system without locks this does nothing.

    Args:
      file: the open file.
      refusal: the error's message if another process has locked it.

    Raises:
      UserError: another process has locked the file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(refusal) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def replace(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file's content in one step, so that a kill leaves the old content or the new."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
