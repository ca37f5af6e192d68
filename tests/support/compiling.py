"""Fixtures that make compiling cheap, and one that reads what was compiled.

All workers, and the processes that tests start, share a folder of compiled programs for the session
(`tests.support.environment`): a program that two tests need is compiled once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def compilation_cache() -> pathlib.Path:
    """The session's folder of compiled programs."""
    return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """XLA skips most optimizations: the programs of these tests run for milliseconds, and compiling takes seconds."""
    with without_optimizations():
        yield


@pytest.fixture
def quick_compile_here() -> Iterator[None]:
    """`quick_compile` for one test, where other tests of its module read compiled programs."""
    with without_optimizations():
        yield


@contextlib.contextmanager
def without_optimizations() -> Iterator[None]:
    """The same for a block."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


# What a run's programs do not depend on: how long it is, what it writes, and how often it looks.
_OF_THE_LOOP = (
    "checkpoint",
    "eval_every",
    "log",
    "offload",
    "seed",
    "seqkd.steps",
    "warmup.steps",
    "gad.steps",
    "soda.steps",
)


@pytest.fixture(scope="module")
def shared_programs() -> Iterator[None]:
    """Runs of equal settings share their programs: a module traces each once, where every run would do so again.

    Compiled programs come from the cache anyway; tracing and lowering take most of such a run. Not for tests that
    replace what a program traces, or count what is compiled.
    """
    from gadjax.distill import state
    from gadjax.trainer import heldout, stage_steps

    make_heldout, kept = heldout.HeldOutPrograms, {}

    def heldout_programs(setup: Any) -> Any:
        config = setup.config.to_dict()
        for name in _OF_THE_LOOP:
            section, _, field = name.rpartition(".")
            del (config[section] if section else config)[field]
        fields = (setup.mesh, setup.generator, setup.sampler, setup.discriminator, setup.eos_ids, setup.prompt_width)
        key = repr(config), *fields
        if key not in kept:
            kept[key] = make_heldout(setup)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "adamw", functools.cache(state.adamw))  # equal optimizers are one, so that methods compare
        patch.setattr(stage_steps, "Programs", functools.cache(stage_steps.Programs))
        patch.setattr(heldout, "HeldOutPrograms", heldout_programs)
        yield


@pytest.fixture
def nothing_compiled_yet(tmp_path: pathlib.Path) -> Iterator[None]:
    """Programs that other tests compiled are out of reach: this test counts compilations, or takes their time."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def largest_in_loops() -> Callable[..., int]:
    """Bytes that the largest collective in a loop, or in those of a name, of a compiled program moves; 0 for none."""
    from gadjax.planning.hlo import HloProgram
    from gadjax.planning.hlo_costs import collectives

    def largest(compiled: Any, name: str | None = None) -> int:
        program = HloProgram(compiled.as_text())
        if name:
            program.check_loop(name)
        inside = (found for found in collectives(program) if (name in found.loops if name else found.in_loop))
        return max((found.bytes for found in inside), default=0)

    return largest


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Commands see one device: a run compiles in half the time. `tests/test_train.py` has one on all eight."""
    with on_one_device():
        yield


@pytest.fixture(scope="session")
def one_device_context() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The same for a block."""
    return on_one_device


@pytest.fixture
def all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `one_device` for a test."""
    from gadjax.parallel import mesh

    monkeypatch.setattr(mesh, "make_mesh", getattr(mesh.make_mesh, "func", mesh.make_mesh))


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    import jax

    from gadjax.parallel import mesh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:1]))
        yield
