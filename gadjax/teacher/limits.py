"""How fast a teacher may be asked: requests in flight, requests and tokens per minute, and pauses that all keep to.

What the API says steers it: an answer lets a little more through, a refusal for load (HTTP 429 or 503) halves what
may be in flight (AIMD, as TCP has it: Chiu and Jain 1989), and a Retry-After holds back every request, not only the
one that was refused.
"""

from __future__ import annotations

import asyncio
import math

LONGEST_ASKED_WAIT = 600.0  # seconds that a server's Retry-After can ask for


class Bucket:
    """A token bucket: `per_minute` units a minute, of which a second's worth (at least one) may come at once.

    More than the bucket holds can be taken while it is full; it is then in debt, and others wait. So a request
    larger than the bucket gets through, and the long-run rate stays.
    """

    def __init__(self, per_minute: float, now: float):
        """
        Args:
          per_minute: units.
          now: seconds, on the clock of all later calls.
        """
        self._rate = per_minute / 60
        self._size = max(self._rate, 1.0)
        self._level, self._at = self._size, now

    def wait(self, units: float, now: float) -> float:
        """Seconds until `units` can be taken."""
        self._refill(now)
        lack = min(units, self._size) - self._level
        # Less than this is rounding of the clock's own, on which a waiter would spin.
        return lack / self._rate if lack > 1e-9 * self._size else 0.0

    def take(self, units: float, now: float) -> None:
        """Takes `units`; a negative number gives back what turned out not to be needed."""
        self._refill(now)
        self._level -= units

    def _refill(self, now: float) -> None:
        # What was given back may stand above the size: it was taken before, so the long-run rate still holds.
        if self._level < self._size:
            self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


class Slot:
    """One attempt's place among those in flight."""

    def __init__(self, epoch: int, tokens: int):
        self.epoch, self.tokens = epoch, tokens


class Limits:
    """Lets attempts through; `slot = await acquire(tokens)` before each, `release(slot, used)` after it.

    In the order of asking. Used within one running event loop, whose clock it goes by.
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
          concurrency: attempts in flight at most.
          requests_per_minute: attempts begun; None for any number.
          tokens_per_minute: tokens in and out, as estimated when an attempt begins and corrected when it ends.
          stop: when set, whoever waits is cancelled.
        """
        self.stop = stop or asyncio.Event()
        self.pauses = 0  # times that the API asked all to wait, or the number in flight was halved
        self._most, self._allowed = concurrency, float(concurrency)
        self._in_flight = 0
        self._epoch = 0  # halvings so far; refusals of attempts begun before the last are its echo
        self._resume = -math.inf  # the clock's time before which nothing begins
        self._limits = (requests_per_minute, tokens_per_minute)
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def allowed(self) -> int:
        """Attempts that may be in flight now."""
        return max(int(self._allowed), 1)

    async def acquire(self, tokens: int) -> Slot:
        """Waits until one more attempt may begin.

        Args:
          tokens: in and out, that it may take: an estimate, corrected by `release`.

        Raises:
          asyncio.CancelledError: `stop` was set.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self._requests is None and self._tokens is None:
                self._requests, self._tokens = (n and Bucket(n, loop.time()) for n in self._limits)
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
        """Ends an attempt.

        Args:
          slot: its place.
          used: tokens in and out that it came to; None where nobody knows, and the estimate stands.
        """
        self._in_flight -= 1
        if self._tokens and used is not None:
            self._tokens.take(used - slot.tokens, asyncio.get_running_loop().time())
        self._changed.set()

    def answered(self) -> None:
        """The API answered: one more in flight after as many answers as are in flight."""
        self._allowed = min(self._allowed + 1 / self._allowed, self._most)
        self._changed.set()

    def refused(self, slot: Slot, retry_after: float | None) -> None:
        """The API refused an attempt for load.

        Args:
          slot: its place.
          retry_after: seconds that the API asks to wait, where it does.
        """
        if slot.epoch == self._epoch:
            self._epoch += 1
            self.pauses += 1
            # Of what is in flight, not of what might be (RFC 5681, 3.1).
            self._allowed = max(min(self._allowed, self._in_flight) / 2, 1.0)
        if retry_after is not None:
            now = asyncio.get_running_loop().time()
            self._resume = max(self._resume, now + min(retry_after, LONGEST_ASKED_WAIT))
        self._changed.set()

    def _wait(self, tokens: int, now: float) -> float:
        """Seconds before the next attempt can begin; infinite where another has to end first."""
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
    """Waits for an event, or at most so many seconds.

    Raises:
      asyncio.CancelledError: `stop` is set.
    """
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if stop.is_set():
        raise asyncio.CancelledError
