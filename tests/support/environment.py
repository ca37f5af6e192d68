"""The environment that every test has. It is set before anything imports JAX."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import tempfile

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


def quick_environment() -> dict[str, str]:
    """Variables of a process that a test starts: it compiles as `quick_compile` does, for devices of its own."""
    flags = (flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    return {"XLA_FLAGS": " ".join(flags), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


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
