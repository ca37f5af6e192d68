"""Coroutines in a notebook, and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading

import pytest

from gadjax.teacher.in_loop import finish, interruptible

pytestmark = pytest.mark.quick


def test_an_interrupt_in_a_notebook_ends_what_is_under_way():
    ended = []

    async def asking() -> dict[str, str]:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def cell() -> None:
        finish(asking())

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest ignores it
    try:
        with contextlib.closing(asyncio.new_event_loop()) as loop, pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True]


def test_a_first_interrupt_asks_to_stop_and_a_second_ends_all():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    async def asking(again: bool) -> str:
        stop = asyncio.Event()
        with interruptible(stop):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.wait_for(stop.wait(), 60)
            seen.append(again)
            if again:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
        return "ended in order"

    try:
        assert finish(asking(False)) == "ended in order"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            finish(asking(True))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [False, True]
