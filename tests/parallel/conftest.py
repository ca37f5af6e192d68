"""Runs of the real command by several processes."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Process(NamedTuple):
    """What one process left."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def train(tmp_path_factory, tiny_config, repo, compilation_cache) -> Callable[..., list[Process]]:
    """Runs `python -m gadjax.train` in `processes` processes with `devices` virtual devices each.

    Further arguments: fields of the tiny config, the workdir, flags for all, and flags for the last process alone.
    """

    def run(
        fields: dict[str, Any],
        workdir: pathlib.Path,
        *flags: str,
        processes: int = 1,
        devices: int = 1,
        last: tuple[str, ...] = (),
    ) -> list[Process]:
        config = tmp_path_factory.mktemp("config") / "config.py"
        values = {name: value for name, value in _flat(tiny_config(fields).to_dict())}
        config.write_text(
            "from configs.base import get_config as base\n\n\ndef get_config():\n    config = base().unlock()\n"
            f"    config.update_from_flattened_dict({values!r})\n    return config.lock()\n"
        )
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(repo),
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        command = [sys.executable, "-m", "gadjax.train", f"--config={config}", f"--workdir={workdir}", *flags]
        coordinator = f"--coordinator=127.0.0.1:{free_port()}"
        started = []
        for index in range(processes):
            several = [coordinator, f"--num_processes={processes}", f"--process_id={index}"] if processes > 1 else []
            own = [*several, *(last if index == processes - 1 else ())]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen([*command, *own], env=environment, stdout=pipe, stderr=pipe, text=True))
        try:
            outputs = [process.communicate(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()
        return [Process(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]

    return run


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _flat(config: dict[str, Any], prefix: str = "") -> Any:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
