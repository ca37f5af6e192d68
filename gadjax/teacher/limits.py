"""Limits how fast a teacher is asked: requests in flight, and requests and tokens per minute.

The API's responses steer the limit in flight. An answer raises it a little, and a refusal for load (HTTP 429 or 503)
halves it, as TCP does (additive increase, multiplicative decrease: Chiu and Jain 1989). A Retry-After holds back every
request, not only the refused one.
"""

from __future__ import annotations

import asyncio
import math
from typing import NamedTuple

LONGEST_ASKED_WAIT = 600.0  # seconds; a longer Retry-After is cut to this


class Bucket:
    """A token bucket: `per_minute` units a minute, and a second's worth of them (at least one) at once.

    A full bucket gives more than it holds. It is in debt then, and later requests wait. So a request larger than the
    bucket gets through, and the long-run rate stays. `now` is in seconds, on the same clock in all calls.
    """

    def __init__(self, per_minute: float, now: float):
        self._rate = per_minute / 60
        self._size = max(self._rate, 1.0)
        self._level, self._at = self._size, now

    def wait(self, units: float, now: float) -> float:
        """Seconds until `units` can be taken."""
        self._refill(now)
        lack = min(units, self._size) - self._level
        # A smaller lack is a rounding error of the clock, on which a waiter would spin.
        return lack / self._rate if lack > 1e-9 * self._size else 0.0

    def take(self, units: float, now: float) -> None:
        """Takes `units`; a negative number gives unused units back."""
        self._refill(now)
        self._level -= units

    def _refill(self, now: float) -> None:
        # Units given back may fill the bucket above its size: they were taken before, so the long-run rate holds.
        if self._level < self._size:
            self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


class Slot(NamedTuple):
    """One attempt in flight."""

    epoch: int  # number of halvings before it began
    tokens: int  # estimated for it


class Limits:
    """Lets attempts through, in the order of asking, within one event loop and by its clock.

    Call `slot = await acquire(tokens)` before each attempt, and `release(slot, used)` after it.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        stop: asyncio.Event | None = None,
    ):
        """
        Args:
          concurrency: attempts in flight, at most.
          requests_per_minute: attempts that begin; None for any number.
          tokens_per_minute: tokens in and out, estimated when an attempt begins and corrected when it ends.
          stop: once set, every wait is cancelled.
        """
        self.stop = stop or asyncio.Event()
        self.pauses = 0  # halvings of the limit in flight
        self._most, self._allowed = concurrency, float(concurrency)
        self._in_flight = 0
        self._epoch = 0  # halvings so far; a refusal of an attempt from before the last one halves nothing
        self._resume = -math.inf  # time before which no attempt begins
        self._limits = (requests_per_minute, tokens_per_minute)
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def allowed(self) -> int:
        """Number of attempts that may be in flight now."""
        return max(int(self._allowed), 1)

    async def acquire(self, tokens: int) -> Slot:
        """Waits until one more attempt of about `tokens` may begin; raises CancelledError if `stop` is set."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self._requests is None and self._tokens is None:
                self._requests, self._tokens = (Bucket(n, loop.time()) if n else None for n in self._limits)
            while (seconds := self._wait(tokens, loop.time())) > 0:
                self._changed.clear()
                await until(self._changed, self.stop, None if math.isinf(seconds) else seconds)
            if self.stop.is_set():
                raise asyncio.CancelledError
            self._in_flight += 1
            if self._requests:
                self._requests.take(1, loop.time())
            if self._tokens:
                self._tokens.take(tokens, loop.time())
        return Slot(self._epoch, tokens)

    def release(self, slot: Slot, used: int | None = None) -> None:
        """Ends an attempt that took `used` tokens in and out; None if unknown, so that the estimate stands."""
        self._in_flight -= 1
        if self._tokens and used is not None:
            self._tokens.take(used - slot.tokens, asyncio.get_running_loop().time())
        self._changed.set()

    def answered(self) -> None:
        """Raises the limit in flight after an answer, by one for as many answers as there are attempts in flight."""
        self._allowed = min(self._allowed + 1 / self._allowed, self._most)
        self._changed.set()

    def refused(self, slot: Slot, retry_after: float | None) -> None:
        """Lowers the limit after a refusal for load, and holds all attempts back for `retry_after` seconds if given."""
        if slot.epoch == self._epoch:
            self._epoch += 1
            self.pauses += 1
            # Half of the attempts in flight, not of the limit (RFC 5681, 3.1).
            self._allowed = max(min(self._allowed, self._in_flight) / 2, 1.0)
        if retry_after is not None:
            now = asyncio.get_running_loop().time()
            self._resume = max(self._resume, now + min(retry_after, LONGEST_ASKED_WAIT))
        self._changed.set()

    def _wait(self, tokens: int, now: float) -> float:
        """Seconds before the next attempt can begin; infinite if another one has to end first."""
        if self.stop.is_set():
            return 0.0
        if self._in_flight >= self.allowed:
            return math.inf
        waits = [self._resume - now]
        if self._requests:
            waits.append(self._requests.wait(1, now))
        if self._tokens:
            waits.append(self._tokens.wait(tokens, now))
        return max(waits)


async def until(event: asyncio.Event, stop: asyncio.Event, seconds: float | None = None) -> None:
    """Waits for an event, at most so many seconds; raises CancelledError if `stop` is set."""
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if stop.is_set():
        raise asyncio.CancelledError
