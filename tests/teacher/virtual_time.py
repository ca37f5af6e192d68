"""An event loop with a virtual clock, in which waiting takes no real time."""

import asyncio
import selectors


class _Selector(selectors.SelectSelector):
    """A selector that lets virtual time pass instead of waiting for files."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise AssertionError("every task waits for another: nothing will ever happen")
        self.now += max(timeout, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._selector_of_time = _Selector()
        super().__init__(self._selector_of_time)

    def time(self):
        return self._selector_of_time.now


def run(coroutine):
    """Runs a coroutine from time 0 on, and returns its result."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(coroutine)
