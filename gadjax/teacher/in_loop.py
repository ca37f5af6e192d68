"""Coroutines in scripts and in notebooks, whose thread has a running loop, and Ctrl-C while they run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def finish(asking: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. It runs in another thread if this one has a running loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

    async def noted() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        return await asking

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        ends = thread.submit(asyncio.run, noted())
        try:
            return ends.result()
        except KeyboardInterrupt:  # only this thread got it: the other one would go on asking
            for loop, task in running:
                loop.call_soon_threadsafe(task.cancel)
            raise


@contextlib.contextmanager
def interruptible(stop: asyncio.Event) -> Iterator[None]:
    """A block in which Ctrl-C sets `stop`, so that the answers under way are waited for; a second one ends all at once.

    Only Python's main thread gets Ctrl-C. In a notebook the block runs in another one, which `finish` ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def note() -> None:
        print("stopping: the answers under way are waited for; Ctrl-C again drops them", file=sys.stderr)
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, note)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
