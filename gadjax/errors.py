"""Errors that a user can mend, and how commands show them."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, row, field or flag, and says what to do."""


class SaidElsewhere(UserError):
    """A `UserError` that another process of the run prints, so that this one does not."""


class Stopped(Exception):
    """A run was told to stop and has saved its state. The message says how to continue."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(name: str, known: Iterable[str]) -> str:
    """What follows "there is no X of this name" in a message: the known name that was perhaps meant, or the stop."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main`, then exits: with `main`'s status, or after one line on stderr for an error.

    A `UserError` gives status 2. `Stopped` gives 75 (`EX_TEMPFAIL`), the system's number for "try again". Any other
    error is a defect of gadjax and keeps its traceback.
    """
    try:
        status = main()
    except SaidElsewhere:
        status = 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        status = os.EX_TEMPFAIL
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status or 0)
