"""A lock on a run's folder: two processes that train in it would delete each other's checkpoints and logs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket

from gadjax.files import lock, writing

FILE = "running.lock"  # in the workdir; names the process that holds the lock, or held it last


class WorkdirLock(contextlib.ExitStack):
    """A context manager for the lock on a workdir, which is held from `take` to the end of the block.

    The lock is released at the end of the process too, however it ends.
    """

    def __init__(self, workdir: pathlib.Path):
        super().__init__()
        self._workdir, self._taken = workdir, False

    def take(self) -> None:
        """Takes the lock, unless it is held already. The folder must exist.

        Raises:
          UserError: another process holds the lock, or the file cannot be written.
        """
        if self._taken:
            return
        with writing(self._workdir, "--workdir "):
            file = self.enter_context(open(self._workdir / FILE, "a+b"))  # noqa: SIM115
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "another process"
        lock(file, f"--workdir {self._workdir}: {holder} trains there; wait for it to end, or stop it")
        self._taken = True
        with writing(self._workdir, "--workdir "):
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}\n".encode())
            file.flush()
