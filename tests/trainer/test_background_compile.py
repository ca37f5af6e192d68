"""Programs compiled while the weights are read are those that the run then calls."""

from __future__ import annotations

import threading

import jax
import pytest

from gadjax.data.pipeline import batches
from gadjax.setup.blueprint import abstract_state
from gadjax.setup.initial import initial_generator
from gadjax.setup.prepare import prepare_run
from gadjax.trainer.background_compile import BackgroundCompile
from gadjax.trainer.heldout import HeldOut
from gadjax.trainer.replay import Replay
from gadjax.trainer.stage_steps import StageSteps


def test_jobs_run_at_once_and_are_waited_for_by_name():
    """Neither ends before the other has begun."""
    together = threading.Barrier(2, timeout=60)
    done = []
    ahead = BackgroundCompile(
        {name: lambda name=name: (together.wait(), done.append(name)) for name in ("one", "other")}
    )
    ahead.wait("none")
    ahead.wait("one")
    ahead.wait("other")
    assert sorted(done) == ["one", "other"]
    ahead.wait("one")  # again: there is nothing to wait for


def test_what_a_compilation_raises_is_raised_where_it_is_waited_for():
    ahead = BackgroundCompile({"one": lambda: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        ahead.wait("one")


def test_nothing_is_started_among_several_processes(monkeypatch):
    monkeypatch.setattr("gadjax.parallel.processes.count", lambda: 2)
    done = []
    BackgroundCompile({"one": lambda: done.append(1)}).wait("one")
    assert not done


@pytest.mark.parametrize("sizes", [{"data": 1, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_what_was_compiled_ahead_is_what_is_called(tiny_config, quick_compile, one_device_context, sizes):
    """The first measurement's likelihoods and samples, and the first rollout: none of them compiles again."""
    fields = {f"mesh.{axis}": size for axis, size in sizes.items()} | {"stages": ("gad",)}
    if sizes["data"] == 1:
        with one_device_context():
            setup = prepare_run(tiny_config(fields))
    else:
        setup = prepare_run(tiny_config(fields))
    heldout, steps = HeldOut(setup), StageSteps(setup, "gad", Replay(0))
    state = abstract_state(setup, "gad")
    generator = initial_generator(setup)
    batch = next(iter(batches(setup.train, batch_size=setup.config.batch_size, seed=0)))
    compiled = []

    def listen(name: str, _: float, *, fun_name: str = "", **__: object) -> None:
        if name.endswith("backend_compile_duration") and ("likelihoods" in fun_name or "sample" in fun_name):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        heldout.compile_first(state)
        steps.compile_first(state)
        assert len(compiled) == 3, compiled
        heldout.figures(generator)
        steps.programs.sample(generator, steps.programs.place_batch(batch), jax.random.key(0))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 3, compiled
