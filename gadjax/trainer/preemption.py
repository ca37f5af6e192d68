"""Being told to stop: SIGTERM, as a preemption, Slurm's time limit and `kill` send it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from jax.experimental import multihost_utils

from gadjax.parallel import processes


class StopRequest:
    """Notes SIGTERM, where a run asks for it between two steps; a context manager.

    The second SIGTERM ends a process that is alone at once, as the first would have. Of several processes one signal is
    enough: JAX's own handler, which `jax.distributed.initialize` installs, tells the others, and all stop at the same
    place.
    """

    def __init__(self) -> None:
        self._noted, self._asked = False, 0
        self._before: Any = None
        # Python has handlers in its main thread only; a run in another one is whoever started it's to stop.
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
        """Whether to stop now; every process asks as often.

        JAX lets all stop at the call after the last that any has made, and counts from 0: so calls are numbered, not
        steps, of which a run that goes on would skip the one to stop at.
        """
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked) if processes.count() > 1 else self._noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
