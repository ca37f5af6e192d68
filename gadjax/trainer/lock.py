"""One process at a time trains in a workdir: a second would take the first one's checkpoints and logs from under it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

from gadjax.files import lock, writing

FILE = "running.lock"  # in the workdir; of which process, whether that still runs or not


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir, which exists, for the block or until this process is gone, however that ends.

    Raises:
      UserError: another process holds it; or its lock cannot be written.
    """
    path = workdir / FILE
    with contextlib.ExitStack() as stack:
        with writing(workdir, "--workdir "):
            file = stack.enter_context(open(path, "a+b"))
        file.seek(0)
        holder = file.read().decode(errors="replace").strip()
        lock(file, f"--workdir {workdir}: {holder or 'another process'} trains there; wait for it to end, or stop it")
        with writing(workdir, "--workdir "):
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}\n".encode())
            file.flush()
        yield
