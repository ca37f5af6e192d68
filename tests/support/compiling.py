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


# What programs of held-out figures do not depend on: how a run learns, what it reads and writes, how often it looks.
_OF_THE_RUN = (
    "checkpoint",
    "data.heldout",
    "data.train",
    "discriminator.replay_size",
    "discriminator.updates_per_step",
    "eval_every",
    "evaluation.shown",
    "evaluation.two_sample_epochs",
    "evaluation.two_sample_folds",
    "export_dtype",
    "gad",
    "log",
    "offload",
    "optimizer",
    "random_init",
    "seed",
    "seqkd",
    "soda",
    "stages",
    "student",
    "warmup",
)


@pytest.fixture(scope="module")
def shared_programs() -> Iterator[None]:
    """Runs and commands of equal settings share their programs, those of the session's other modules included.

    Each is traced once, where every run would do so again. Compiled programs come from the cache anyway; tracing and
    lowering take most of such a run. Not for tests that replace what a program traces, or count what is compiled.
    """
    with sharing_programs():
        yield


@contextlib.contextmanager
def sharing_programs() -> Iterator[None]:
    """The same for a block."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, shared in _makers():
            patch.setattr(module, name, shared)
        yield


_KEPT = 12  # of each kind, for the sake of memory


@functools.cache
def _makers() -> list[tuple[Any, str, Callable[..., Any]]]:
    """What makes programs: the module that calls it, its name, and one in its place that keeps what it made last."""
    from gadjax.distill import state
    from gadjax.rollout import chat_model
    from gadjax.setup import initial
    from gadjax.setup.blueprint import make_method
    from gadjax.trainer import heldout, stage_start, stage_steps

    make_heldout = heldout.HeldOutPrograms
    kept: dict[Any, Any] = {}

    def heldout_programs(setup: Any) -> Any:
        config = setup.config.to_dict()
        for name in _OF_THE_RUN:
            section, _, field = name.rpartition(".")
            del (config[section] if section else config)[field]
        methods = [make_method(setup, stage) for stage in setup.config.stages]
        parts = tuple((method.generator_micro_batches, method.discriminator_micro_batches) for method in methods)
        fields = (setup.mesh, setup.generator, setup.sampler, setup.discriminator, setup.eos_ids, setup.prompt_width)
        key = repr(config), parts, *fields
        if key not in kept:
            kept[key] = make_heldout(setup)
            if len(kept) > _KEPT:
                del kept[next(iter(kept))]
        return kept[key]

    few = functools.lru_cache(maxsize=_KEPT)
    return [
        # Equal rates and optimizers are one, so that methods compare.
        (state, "learning_rate", functools.cache(state.learning_rate)),
        (state, "adamw", functools.cache(state.adamw)),
        (stage_steps, "Programs", few(stage_steps.Programs)),
        (heldout, "HeldOutPrograms", heldout_programs),
        (initial, "draw_program", few(initial.draw_program)),
        (initial, "growth_program", few(initial.growth_program)),
        (stage_start, "create_program", few(stage_start.create_program)),
        (chat_model, "Engine", few(chat_model.Engine)),
    ]


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
