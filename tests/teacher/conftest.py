"""A real OpenAI-compatible server on loopback: `transformers serve` with SmolLM2-135M."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import site
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.smollm2 import smollm2  # noqa: F401

_START_SECONDS = 300
_CLI = "transformers.cli.transformers"
# Without a number of blocks the server takes most of the machine's memory for its cache, on a CPU too.
_SERVE_FLAGS = (
    "--device=cpu", "--dtype=bfloat16", "--continuous-batching", "--cb-num-blocks=512", "--cb-max-batch-tokens=512",
    "--log-level=info",
)  # fmt: skip


class ServedModel(NamedTuple):
    """A running server, whose log has a line for every request."""

    url: str  # without a path
    model: str  # the name that requests carry
    log: pathlib.Path

    def answered(self) -> int:
        """The number of chat requests that the server has answered, by its log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(scope="session")
def serving_python(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A Python that can run `transformers serve`: this one, or one in the user's cache with the missing packages.

    The other environment is a thin one upon this one's packages, so that torch is there once.
    """
    pytest.importorskip("torch")
    if all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        return pathlib.Path(sys.executable)
    version = importlib.metadata.version("transformers")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    name = f"transformers-{version}-python{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / "gadjax-tests" / name
    python = folder / "bin" / "python"
    ready = folder / "ready"  # names the packages that it stands upon
    upon = "\n".join(site.getsitepackages())
    if ready.is_file() and ready.read_text() == upon:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    own = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True
    )
    (pathlib.Path(own.stdout.strip()) / "upon.pth").write_text(upon)
    install = [python, "-m", "pip", "install", "--quiet", "--no-input", f"transformers[serving]=={version}"]
    done = subprocess.run(install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        pytest.skip(f"transformers[serving] cannot be installed: {done.stdout.strip().splitlines()[-1]}")
    ready.write_text(upon)
    return python


@pytest.fixture(scope="session")
def served_smollm2(
    serving_python: pathlib.Path,
    smollm2: pathlib.Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServedModel]:
    """SmolLM2 behind `transformers serve`, up until the session ends."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = ServedModel(f"http://127.0.0.1:{port}", str(smollm2), tmp_path_factory.mktemp("serve") / "log")
    line = [serving_python, "-m", _CLI, "serve", smollm2, "--host=127.0.0.1", f"--port={port}", *_SERVE_FLAGS]
    # Threads that spin while they wait make the server many times slower wherever another process wants a core.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    with served.log.open("w") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(served, process)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(served: ServedModel, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{served.log.read_text()[-2000:]}"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{served.url}/health", timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"no server within {_START_SECONDS} s:\n{served.log.read_text()[-2000:]}")
