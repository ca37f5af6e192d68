"""Ends this process if another process of the run is gone, since what they compute together would wait forever.

Each process has a thread that meets the others at a barrier every few seconds, whatever the main threads do; a process
that does not come is gone. JAX's own heartbeats are a second line of defence. They end a process by an abort with a
stack trace, and after an exception in a collective JAX would still wait for the dead process at exit. They are the only
defence while weights are read, since Python's threads wait for the disk then. Process 0 holds the barrier: if it is
gone, the others end at once, by JAX's abort or by the watch, whichever notices first.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from typing import Any

import jax

BEAT = 2  # seconds between two barriers
PATIENCE = 25  # seconds that a process may be late
# JAX ends a process between half and all of these seconds after another one's last sign of life: later than
# LivenessWatch, and within a minute.
HEARTBEAT = 58
SHUTDOWN = 30  # seconds that a process waits for the others at the end
_SHUTDOWN_AFTER_FAILURE = 10


class LivenessWatch:
    """Watches the other processes from this one, until the program ends."""

    def __init__(self, client: Any, *, beat: float = BEAT, patience: float = PATIENCE):
        """
        Args:
          client: JAX's connection to the coordination service.
          beat, patience: seconds, see `BEAT` and `PATIENCE`.
        """
        self._client, self._beat, self._patience = client, beat, patience
        self._met, self._leaving = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="liveness watch")
        self._thread.start()
        atexit.register(self._leave)  # registered after JAX's handler, and so called before it

    def confirm(self) -> None:
        """Returns once all processes have been met after this call. If one is gone, this process ends instead."""
        begun = self._met + 1  # the barrier in progress may have begun before the call
        while self._met <= begun and self._thread.is_alive():
            time.sleep(0.1)

    def _run(self) -> None:
        while True:
            try:
                self._client.wait_at_barrier("gadjax_watch", int(1000 * self._patience))
            except jax.errors.JaxRuntimeError as error:
                if self._leaving.is_set():
                    return
                self._end(str(error))
            self._met += 1
            time.sleep(self._beat)

    def _end(self, error: str) -> None:
        """Ends this process at once: an orderly exit would wait for the dead process."""
        print(f"error: {describe(error, self._patience)}", file=sys.stderr)
        _exit(os.EX_TEMPFAIL)

    def _leave(self) -> None:
        """Called at exit. After an uncaught exception, waits for the others only if they fail too."""
        self._leaving.set()
        if hasattr(sys, "last_value"):
            try:
                self._client.wait_at_barrier("gadjax_failed", 1000 * _SHUTDOWN_AFTER_FAILURE)
            except jax.errors.JaxRuntimeError:
                _exit(1)


def describe(error: str, patience: float) -> str:
    """The message for a barrier that failed.

    Args:
      error: the coordination service's error, which names the missing processes, one per line.
      patience: seconds that they had.
    """
    missing = re.findall(r"^(?:\S*task:)?(\d+)$", error, re.MULTILINE)
    who = f"process{'es' * (len(missing) > 1)} {', '.join(missing)}" if missing else "a process"
    return (
        f"{who} of this run did not answer for {patience:g} s and must be gone: see what was printed there; then start "
        "every process again with the same command, which goes on from the last checkpoint"
    )


def _exit(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
