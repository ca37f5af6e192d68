"""Notices that a process of the run is gone, and ends this one: what it computes with the others would wait forever.

Every process meets the others at a barrier every few seconds, on a thread: whatever their main threads do, the living
come, and who does not is gone. JAX has heartbeats of its own, which are the second line, and the only one while weights
are read (that keeps Python's threads waiting, for as long as a disk may take). They find the same, but end a process by
an abort with a stack trace; and where a collective's exception came first, JAX would still wait for the dead at the
exit. Process 0 holds the meeting place: where it is gone, JAX aborts the others at once.
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

BEAT = 2  # seconds between two meetings
PATIENCE = 25  # seconds that a process may be late
# JAX ends a process half of this to all of it after another one's last sign of life: later than the watch, and still
# within a minute.
HEARTBEAT = 58
SHUTDOWN = 30  # seconds that one process waits for the others to end too
_LAST_WORDS = 10  # the same, where it failed


class LivenessWatch:
    """Of this process over the others, until the program ends."""

    def __init__(self, client: Any, *, beat: float = BEAT, patience: float = PATIENCE):
        """
        Args:
          client: of JAX's coordination service.
          beat, patience: seconds, see `BEAT` and `PATIENCE`.
        """
        self._client, self._beat, self._patience = client, beat, patience
        self._met, self._leaving = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="liveness watch")
        self._thread.start()
        atexit.register(self._leave)  # after JAX's own, and so before it

    def confirm(self) -> None:
        """Returns when all processes have been met since this call. Where one is gone, this process ends instead."""
        begun = self._met + 1  # the meeting in progress may have begun before
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
        """At once: an orderly end would wait for the dead."""
        print(f"error: {describe(error, self._patience)}", file=sys.stderr)
        _exit(os.EX_TEMPFAIL)

    def _leave(self) -> None:
        """The program ends. After a traceback the others may be at work: they are not waited for, unless they failed
        as well.
        """
        self._leaving.set()
        if hasattr(sys, "last_value"):
            try:
                self._client.wait_at_barrier("gadjax_failed", 1000 * _LAST_WORDS)
            except jax.errors.JaxRuntimeError:
                _exit(1)


def describe(error: str, patience: float) -> str:
    """What the user reads of a meeting that failed.

    Args:
      error: of the coordination service, which names those who did not come, one a line.
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
