"""Compiles the programs that a run needs first, on threads, while its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures

from gadjax.parallel import processes


class BackgroundCompile:
    """Compilations in the background. A program that is called before `wait` returns is compiled a second time.

    Several processes start none: they must compile some programs together, and in the same order.
    """

    def __init__(self, jobs: Mapping[str, Callable[[], None]]):
        """Starts one thread a job. `jobs`: functions by name, each of which compiles programs."""
        self._pool = futures.ThreadPoolExecutor(max(1, len(jobs)), thread_name_prefix="compile")
        alone = processes.count() == 1
        self._started = {name: self._pool.submit(job) for name, job in jobs.items() if alone}
        self._pool.shutdown(wait=False)

    def wait(self, name: str) -> None:
        """Waits until the job of this name is done, and raises what it raised. Does nothing for unknown names."""
        if started := self._started.pop(name, None):
            started.result()
