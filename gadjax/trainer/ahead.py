"""Compiles what a run needs first, on threads, while its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures

from gadjax.parallel import processes


class Ahead:
    """Compilations that were started. A program is compiled twice where it is called before it is waited for.

    Nothing is started where several processes train: the compiler makes them agree on some programs, in their order.
    """

    def __init__(self, jobs: Mapping[str, Callable[[], None]]):
        """`jobs`: compile the programs of a name each, as they will be called."""
        self._pool = futures.ThreadPoolExecutor(max(1, len(jobs)), thread_name_prefix="compile")
        alone = processes.count() == 1
        self._started = {name: self._pool.submit(job) for name, job in jobs.items() if alone}
        self._pool.shutdown(wait=False)

    def wait(self, name: str) -> None:
        """Until the programs of a name are compiled; raises what their compilation raised. Nothing for other names."""
        if started := self._started.pop(name, None):
            started.result()
