import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadjax.teacher.limits import Bucket, Limits
from tests.teacher.virtual_time import run

pytestmark = pytest.mark.quick


def now():
    return asyncio.get_running_loop().time()


class Server:
    """A server that answers after `seconds`, and refuses requests while `capacity` others are under way."""

    def __init__(self, limits, seconds=1.0, capacity=10**9, retry_after=None):
        self.limits, self.seconds, self.capacity, self.retry_after = limits, seconds, capacity, retry_after
        self.begun, self.refused = [], []
        self.at_once = self.most_at_once = 0

    async def ask(self, tokens=10, used=None):
        """Whether the request is answered."""
        slot = await self.limits.acquire(tokens)
        self.begun.append(now())
        try:
            if self.at_once >= self.capacity:
                self.refused.append(now())
                await asyncio.sleep(0.01)
                self.limits.refused(slot, self.retry_after)
                return False
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(self.seconds)
            self.at_once -= 1
            self.limits.answered()
            return True
        finally:
            self.limits.release(slot, used)

    async def answers(self, count, **options):
        """Asks until this number of requests is answered."""

        async def one():
            while not await self.ask(**options):
                pass

        await asyncio.gather(*(one() for _ in range(count)))


def test_no_more_in_flight_than_concurrency():
    async def work():
        server = Server(Limits(4))
        await server.answers(20)
        return server.most_at_once, now()

    assert run(work()) == (4, 5.0)


def test_a_refusal_halves_what_is_in_flight_once_for_all_refused_together():
    async def work():
        limits = Limits(1000)
        allowed = []
        for count in (16, 8, 4):
            slots = [await limits.acquire(1) for _ in range(count)]
            for slot in slots:
                limits.refused(slot, None)
                limits.release(slot)
            allowed.append(limits.allowed)
        return allowed, limits.pauses

    assert run(work()) == ([8, 4, 2], 3)


def test_it_finds_what_a_server_bears_and_comes_back_when_it_bears_more():
    async def work():
        limits = Limits(32)
        server = Server(limits, capacity=8)
        await server.answers(400)
        # Above 8 it is refused, at 8 or fewer not: it swings between 4 and 9.
        settled = [limits.allowed]
        refused = len(server.refused)
        server.capacity = 10**9
        await server.answers(800)
        return settled[0], refused, limits.allowed, len(server.refused) - refused

    settled, refused, allowed, refused_later = run(work())
    assert 4 <= settled <= 9
    # Fewer than one refusal in five answers, with a concurrency of four times what the server bears.
    assert refused < 80
    assert allowed >= 24 and refused_later == 0


def test_a_retry_after_holds_back_everyone():
    async def work():
        limits = Limits(8)
        server = Server(limits, capacity=4, retry_after=30.0)
        await server.answers(20)
        return server.begun

    begun = run(work())
    assert begun.count(0.0) == 8
    # 0.01: when the first refusals have come back. Nothing begins in the 30 seconds that they ask for.
    assert not [t for t in begun if 0.01 < t < 30.01]
    assert min(t for t in begun if t > 0.01) == pytest.approx(30.01)


def test_a_retry_after_is_bounded():
    async def work():
        limits = Limits(1)
        slot = await limits.acquire(1)
        limits.refused(slot, 1e9)
        limits.release(slot)
        await limits.acquire(1)
        return now()

    assert run(work()) == pytest.approx(600.0)


@pytest.mark.parametrize("per_minute", [1, 3, 60, 600])
def test_requests_per_minute(per_minute):
    async def work():
        server = Server(Limits(10**6, requests_per_minute=per_minute), seconds=0.1)
        await server.answers(3 * per_minute + 1)
        return server.begun

    begun = run(work())
    # In any minute no more than asked, but for the second's worth that may come at once; and hardly less.
    burst = max(1, per_minute // 60)
    for start in begun[::10]:
        assert sum(start <= t < start + 60 - 1e-6 for t in begun) <= per_minute + burst
    assert begun[-1] == pytest.approx(180, rel=0.02)


def test_tokens_per_minute_are_corrected_by_what_was_used():
    async def work(used, count):
        limits = Limits(64, tokens_per_minute=6000)
        await Server(limits, seconds=5.0).answers(count, tokens=1000, used=used)
        return now()

    # 120 requests of 1,000 tokens at 6,000 a minute are 20 minutes, and so are 1,200 of 100 tokens in truth.
    assert run(work(None, 120)) == pytest.approx(1200, rel=0.02)
    assert run(work(1000, 120)) == pytest.approx(1200, rel=0.02)
    assert run(work(100, 1200)) == pytest.approx(1200, rel=0.05)
    # And an estimate that was too low is made up for.
    assert run(work(2000, 120)) == pytest.approx(2400, rel=0.05)


def test_a_request_above_a_minutes_tokens_goes_through():
    async def work():
        server = Server(Limits(8, tokens_per_minute=60), seconds=0.1)
        await server.answers(3, tokens=120, used=120)
        return server.begun

    assert run(work()) == pytest.approx([0.0, 120.0, 240.0])


def test_a_stop_cancels_those_that_wait():
    async def work(limits, seconds):
        held = await limits.acquire(10)
        if seconds:
            limits.refused(held, seconds)
            limits.release(held)
        waiting = [asyncio.create_task(limits.acquire(10)) for _ in range(3)]
        await asyncio.sleep(1)
        limits.stop.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        return [type(end) for end in ends], now()

    for limits, seconds in [(Limits(1), None), (Limits(4), 500), (Limits(4, requests_per_minute=1), None)]:
        assert run(work(limits, seconds)) == ([asyncio.CancelledError] * 3, 1.0)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(1, 10_000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500), st.integers(0, 500)), min_size=1, max_size=30),
)
def test_a_bucket_never_lets_through_more_than_its_rate(per_minute, steps):
    bucket = Bucket(per_minute, 0.0)
    now = used = 0.0
    largest = 0
    for pause, units, back in steps:
        now += pause
        now += bucket.wait(units, now)
        assert bucket.wait(units, now) == 0
        bucket.take(units, now)
        bucket.take(-min(back, units), now)
        used += units - min(back, units)
        largest = max(largest, units)
    assert used <= now * per_minute / 60 + max(per_minute / 60, 1) + largest + 1e-6
