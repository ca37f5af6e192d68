"""The one kind of error that a user can mend, and how commands show it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, row, field or flag and says what to do."""


class SaidElsewhere(UserError):
    """A `UserError` that another process of the run shows."""


class Stopped(Exception):
    """A run was told to stop, and has saved where it stands; the message says how to go on."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main`, showing a `UserError` as one line on stderr with exit status 2.

    `Stopped` is one line too, with status 75: the system's number for what works when it is tried again. Anything else
    is a defect of gadjax and keeps its traceback.
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # whoever read the output, such as head, has left; so has the place to say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status or 0)
