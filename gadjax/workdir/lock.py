"""One process at a time trains in a workdir: a second would take the first one's checkpoints and logs from under it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from types import TracebackType

from gadjax.files import lock, writing

FILE = "running.lock"  # in the workdir; of which process, whether that still runs or not


class WorkdirLock:
    """A lock on a workdir, from `take` to the end of the block or the process, however that ends; a context manager."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir, self._held = workdir, contextlib.ExitStack()
        self._taken = False

    def __enter__(self) -> WorkdirLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def take(self) -> None:
        """Once the folder exists; again is nothing.

        Raises:
          UserError: another process holds it; or its lock cannot be written.
        """
        if self._taken:
            return
        with writing(self._workdir, "--workdir "):
            file = open(self._workdir / FILE, "a+b")  # noqa: SIM115, open until the end of the block
        self._held.callback(file.close)
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "another process"
        lock(file, f"--workdir {self._workdir}: {holder} trains there; wait for it to end, or stop it")
        self._taken = True
        with writing(self._workdir, "--workdir "):
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}\n".encode())
            file.flush()
