"""Errors in reading and writing checkpoints: whether a file is damaged, or the system refused."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import jax
from etils import epath

from gadjax.errors import UserError, first_line
from gadjax.files import is_url

# Errors of the machine, its disks and its network. They say nothing about the contents of a file.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
)
_SYSTEM_STATUSES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
# What readers raise if a file is cut short, missing or overwritten. Clients of object stores raise other errors.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, EOFError, FileNotFoundError, NotADirectoryError)


def is_damage(error: BaseException) -> bool:
    """Whether an error in reading a checkpoint comes from its files, and not from the machine or the run."""
    if isinstance(error, UserError | jax.errors.JaxRuntimeError):
        return False
    cause = error
    while cause.__cause__ is not None:  # Orbax wraps TensorStore's errors into a plain Exception
        cause = cause.__cause__
    found = isinstance(cause, _DAMAGE) and not str(cause).startswith(_SYSTEM_STATUSES)
    return found and _system_reason(error) is None


@contextlib.contextmanager
def using(directory: epath.Path, what: str) -> Iterator[None]:
    """Turns an error in using a folder of checkpoints into a `UserError` that names the folder.

    Args:
      directory: the folder.
      what: what the block does, as a participle: the message says that the folder cannot be "opened", "read", ...
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries that read object stores have errors of their own
        reason = _system_reason(error) or (error.strerror if isinstance(error, OSError) else None)
        if not (reason or isinstance(error, OSError) or is_url(directory)):
            raise
        raise UserError(
            f"{directory} cannot be {what} ({reason or first_line(error)}): mend the cause, or choose another place in "
            "config.checkpoint.directory"
        ) from error


@contextlib.contextmanager
def saving(directory: epath.Path) -> Iterator[None]:
    """Turns the system's refusal of a save in the block into a `UserError`; other errors pass."""
    try:
        yield
    except Exception as error:  # TensorStore, for one, has no error class of its own
        if not (reason := _system_reason(error)):
            raise
        raise UserError(
            f"{directory}: a checkpoint cannot be written ({reason}); those of earlier steps are whole: make room "
            "there, or mend the cause, and run the same command again"
        ) from error


def _system_reason(error: BaseException | None) -> str | None:
    """The system's reason for an error (no space, no permission, ...), or None if the error is about something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
            return error.strerror
        if isinstance(error, TimeoutError):
            return "it timed out"
        if reason := next((text for text in map(os.strerror, _SYSTEM_ERRORS) if text in str(error)), None):
            return reason
        error = error.__cause__ or error.__context__
    return None
