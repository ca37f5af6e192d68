"""Runs of the real command by several processes."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest


class Process(NamedTuple):
    """What one process left."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def train_together(tmp_path_factory, tiny_config, repo, compilation_cache, free_port) -> Callable[..., list[Process]]:
    """Runs `python -m gadjax.train` in several processes at once, with a config as `tiny_config` makes it.

    Arguments: its fields, the workdir, how many processes, virtual devices of each, fields that the last process alone
    has, and what to do to the processes while they run.
    """

    def run(
        fields: dict[str, Any],
        workdir: pathlib.Path,
        *,
        processes: int = 2,
        devices: int = 4,
        last: dict[str, Any] | None = None,
        meanwhile: Callable[[list[subprocess.Popen]], None] = lambda started: None,
    ) -> list[Process]:
        environment = os.environ | {
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}"),
            "PYTHONPATH": str(repo),
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        coordinator = f"--coordinator=127.0.0.1:{free_port()}"
        started = []
        for index in range(processes):
            config = tmp_path_factory.mktemp("config") / "config.py"
            own = fields | (last or {}) if index == processes - 1 else fields
            config.write_text(_config_file(tiny_config(own).to_dict()))
            flags = [f"--config={config}", f"--workdir={workdir}", coordinator]
            flags += [f"--num_processes={processes}", f"--process_id={index}"]
            command = [sys.executable, "-m", "gadjax.train", *flags]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        try:
            meanwhile(started)
            outputs = [process.communicate(timeout=240) for process in started]
        finally:
            for process in started:
                process.kill()
        return [Process(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]

    return run


def _config_file(config: dict[str, Any]) -> str:
    values = dict(_flat(config))
    return f"""from gadjax.config import default_config


def get_config():
    config = default_config().unlock()
    config.update_from_flattened_dict({values!r})
    return config.lock()
"""


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
