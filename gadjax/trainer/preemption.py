"""Requests to stop: SIGTERM, which preemptions, Slurm's time limit and `kill` send."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from jax.experimental import multihost_utils

from gadjax.parallel import processes


class StopRequest:
    """A context manager that notes SIGTERM; a run asks `is_set` between two steps.

    A second SIGTERM ends a single process at once. Where several processes train, one signal is enough: JAX's own
    handler, installed by `jax.distributed.initialize`, tells the others, and all stop at the same place.
    """

    def __init__(self) -> None:
        self._noted, self._asked = False, 0
        self._before: Any = None
        # Python has signal handlers in its main thread only. Whoever started a run in another thread has to stop it.
        self._handles = processes.count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopRequest:
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

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
