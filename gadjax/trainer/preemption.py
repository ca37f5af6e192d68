"""Requests to stop: SIGTERM, which preemptions, Slurm's time limit and `kill` send, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from jax.experimental import multihost_utils

from gadjax.parallel import processes

_NOTICE = "\nCtrl-C: the step in progress ends and is saved, then the run stops. Ctrl-C again stops it now.\n"


class StopRequest:
    """A context manager that notes SIGTERM; a run asks `is_set` between two steps.

    A second SIGTERM ends a single process at once. Where several processes train, one signal is enough: JAX's own
    handler, installed by `jax.distributed.initialize`, tells the others, and all stop at the same place.

    Attributes:
      interrupted: whether this process got Ctrl-C while it minded that (`minding_interrupts`).
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._noted, self._asked = False, 0
        self._before: Any = None
        # Python has signal handlers in its main thread only. Whoever started a run in another thread has to stop it.
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._handles = processes.count() == 1 and self._in_main_thread

    def __enter__(self) -> StopRequest:
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def minding_interrupts(self) -> Iterator[None]:
        """A block in which the first Ctrl-C is a request to stop, and the second raises `KeyboardInterrupt`.

        A process that ignores SIGINT, as one in the background of a shell does, goes on ignoring it.
        """
        minds = self._in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if minds:
            signal.signal(signal.SIGINT, self._note_interrupt)
        try:
            yield
        finally:
            if minds:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def is_set(self) -> bool:
        """Whether to stop now. Every process must ask equally often.

        JAX numbers these questions, and lets all processes stop at the same one. The numbers must have no gaps: a run
        that resumes would skip some numbers of steps, so calls are counted instead.
        """
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked) if processes.count() > 1 else self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = self._noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, _NOTICE.encode())  # print could meet itself: a signal may come in the midst of it
        if processes.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others
