"""Lines about compilations that take a while, and none about others."""

from __future__ import annotations

import functools
import threading
import time

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

from gadjax.trainer.compile_notice import CompileNotice

pytestmark = pytest.mark.usefixtures("one_device")

LOWERED, COMPILED = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))


def _times_three(factor, x):
    return factor * x + 3


def test_a_compilation_of_jax_is_named_while_it_lasts(monkeypatch):
    """JAX tells when it begins and when it ends; a listener of its end waits here, as if it took long."""
    said = []
    with CompileNotice(said.append, after=0.05):
        jax.block_until_ready(jnp.zeros(5))  # a program of its own
        said.clear()

        def linger(event, *_, **__):
            if event == LOWERED:
                time.sleep(0.5)

        jax.monitoring.register_event_duration_secs_listener(linger)
        try:
            jax.jit(functools.partial(_times_three, 2)).lower(jnp.zeros(5)).compile()
        finally:
            jax.monitoring.unregister_event_duration_listener(linger)
    assert said == ["compiling the program times_three"]


def test_only_what_takes_long_is_said():
    said = []
    with CompileNotice(said.append, after=0.2):
        for seconds, name in ((0.0, "jit(fast)"), (0.6, "jit(_slow)")):
            jax.monitoring.record_event_duration_secs(LOWERED, 0.0, fun_name=name)
            time.sleep(seconds)
            jax.monitoring.record_event_duration_secs(COMPILED, seconds, fun_name=name)
        time.sleep(0.4)
    assert said == ["compiling the program slow"]


def test_each_thread_has_its_own():
    """The end of a compilation on one thread does not silence that of another."""
    said = []
    with CompileNotice(said.append, after=0.2):
        jax.monitoring.record_event_duration_secs(LOWERED, 0.0, fun_name="jit(slow)")
        other = threading.Thread(target=jax.monitoring.record_event_duration_secs, args=(COMPILED, 0.0))
        other.start()
        other.join()
        time.sleep(0.6)
    assert said == ["compiling the program slow"]


def test_nothing_is_said_after_the_end():
    said = []
    with CompileNotice(said.append, after=0.2):
        jax.monitoring.record_event_duration_secs(LOWERED, 0.0, fun_name="jit(unfinished)")
    jax.monitoring.record_event_duration_secs(LOWERED, 0.0, fun_name="jit(later)")
    time.sleep(0.5)
    assert said == []
