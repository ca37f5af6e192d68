"""Says which program is being compiled, once that takes a while."""

from __future__ import annotations

import threading
from collections.abc import Callable

import jax.monitoring

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # ends where the compiler begins
_COMPILED = "/jax/core/compile/backend_compile_duration"
_SILENCE = 5.0  # seconds


class CompileNotice:
    """Says "compiling the program NAME" of each compilation that takes long; a context manager."""

    def __init__(self, say: Callable[[str], None], after: float = _SILENCE):
        """
        Args:
          say: shows a line; called from other threads.
          after: seconds of compiling without a line. Most programs take less, or are read from the cache.
        """
        self._say, self._after = say, after
        self._waiting: dict[int, threading.Timer] = {}  # by the thread that compiles

    def __enter__(self) -> CompileNotice:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
        for timer in list(self._waiting.values()):
            timer.cancel()

    def _listen(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event not in (_LOWERED, _COMPILED):
            return
        thread = threading.get_ident()
        if waiting := self._waiting.pop(thread, None):
            waiting.cancel()
        if event == _LOWERED:
            line = f"compiling the program {_program(str(about.get('fun_name', '')))}"
            self._waiting[thread] = timer = threading.Timer(self._after, self._say, (line,))
            timer.daemon = True  # a run that fails to compile does not wait for it
            timer.start()


def _program(name: str) -> str:
    """The name of a jitted function, without "jit(...)" around it."""
    return name.removeprefix("jit(").removesuffix(")").lstrip("_")
