"""Fixtures that make compiling cheap, and one that reads what was compiled.

`tests/conftest.py` names a folder of compiled programs for the whole session, which all workers and the processes that
tests start share: a program that two tests need is compiled once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def set_xla_flags(devices: int) -> None:
    """Adds to XLA_FLAGS that the CPU is to be this many devices, and what makes small programs compile fast.

    XLA's newer emitters take five times as long for the programs of `quick_compile` as those before them: 3.0 and 0.6
    seconds of CPU for an update of a small decoder with jaxlib 0.10.2. A jaxlib that does not know a flag aborts, so
    only those that were tried get them.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = {flag.partition("=")[0] for flag in flags}
    wanted = [f"--xla_force_host_platform_device_count={devices}"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        wanted += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    os.environ["XLA_FLAGS"] = " ".join(flags + [flag for flag in wanted if flag.partition("=")[0] not in given])


def share_compiled_programs(config: pytest.Config) -> None:
    """Names a folder for compiled programs in the environment, unless it names one; removes it when pytest ends.

    Only pytest's first process makes the folder. Its workers, and the processes that tests start, inherit the name.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="gadjax-tests-xla-")
        config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def compilation_cache() -> pathlib.Path:
    """The session's folder of compiled programs."""
    return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """XLA skips most optimizations: the programs of these tests run for milliseconds, and compiling takes seconds."""
    with without_optimizations():
        yield


@contextlib.contextmanager
def without_optimizations() -> Iterator[None]:
    """The same for a block."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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
