"""Tasks that share a queue of requests, and stop together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

_LEAST_BREAK = 8


def patience(concurrency: int) -> int:
    """Failed requests in a row after which no more are worth a try; at least as many as are under way at once."""
    return max(_LEAST_BREAK, concurrency)


async def guarded(task: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Runs a task, whose error sets `stop`, so that the others begin nothing more."""
    try:
        await task
    except Exception:
        stop.set()
        raise


async def run_workers(tasks: Iterable[Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """Runs all to their ends: what is under way is paid for, whatever another one met.

    Raises:
      Exception: the first task's that failed. Those that `stop` woke from a wait end as cancelled, and say nothing.
    """
    ends = await asyncio.gather(*(guarded(task, stop) for task in tasks), return_exceptions=True)
    for error in ends:
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error
