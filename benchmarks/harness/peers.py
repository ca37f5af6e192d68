"""Installs peers in virtual environments of their own, and runs every side in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import venv
from types import TracebackType
from typing import Any

from benchmarks.harness.report import ROOT
from gadjax.errors import UserError

CACHE = pathlib.Path.home() / ".cache" / "gadjax" / "benchmarks"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A package that a benchmark compares gadjax with.

    Attributes:
      name: of its environment's folder.
      requirements: what pip installs there.
      packages: their versions go into the JSON.
    """

    name: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]


# The CPU build of torch comes from pip's own settings, or from --setup_index.
TORCH = Peer("torch", ("torch==2.13.0", "transformers==5.24.0"), ("torch", "transformers"))
TUNIX = Peer("tunix", ("google-tunix==0.1.7", "jax==0.10.2"), ("google-tunix", "jax", "jaxlib", "flax"))


def set_up(peer: Peer, folder: pathlib.Path, index: str | None = None) -> None:
    """Makes the peer's virtual environment, or brings it up to date.

    Args:
      folder: holds all peers' environments.
      index: URL of an index of packages, used beside pip's own.

    Raises:
      UserError: pip failed, or the folder lies in the repository.
    """
    place = (folder / peer.name).resolve()
    if place.is_relative_to(ROOT):
        raise UserError(f"--peers={folder} lies inside the repository: name a folder outside of it")
    venv.create(place, with_pip=True)
    command = [str(_python(place)), "-m", "pip", "install", *peer.requirements]
    command += ["--extra-index-url", index] if index else []
    if subprocess.run(command, env=_environment()).returncode:
        raise UserError(f"pip could not install {' and '.join(peer.requirements)} in {place}: its message is above")


def find_python(peer: Peer, folder: pathlib.Path, module: str) -> pathlib.Path:
    """The interpreter of the peer's environment.

    Args:
      folder: holds all peers' environments.
      module: the benchmark's, for the message.

    Raises:
      UserError: the environment does not exist.
    """
    python = _python(folder / peer.name)
    if not python.exists():
        raise UserError(
            f"no {peer.name} in {folder}: install {' and '.join(peer.requirements)} there with "
            f"python -m {module} --setup, or measure gadjax --alone"
        )
    return python


class Worker:
    """One side: a process that answers requests (`benchmarks.workers.protocol`). A context manager."""

    def __init__(self, name: str, python: pathlib.Path | None = None):
        """
        Args:
          name: of a module in `benchmarks.workers`.
          python: a peer's interpreter, which sees only that file of ours; None means this process's own.
        """
        file = ROOT / "benchmarks" / "workers" / f"{name}.py"
        command = [sys.executable, "-m", f"benchmarks.workers.{name}"] if python is None else [str(python), str(file)]
        environment = _environment() | ({"PYTHONPATH": str(ROOT)} if python is None else {})
        self.name = name
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, what: str, **fields: Any) -> Any:
        """Calls a handler of the worker, and returns its result.

        Raises:
          RuntimeError: the handler failed (with its traceback), or the process ended.
        """
        with contextlib.suppress(BrokenPipeError):  # the process has ended: no reply comes either
            print(json.dumps({"do": what, **fields}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended at {what} with status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self.name} failed at {what}:\n{reply['error']}")
        return reply["ok"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def _environment() -> dict[str, str]:
    """Environment variables for every side: the processor alone, no network, and no settings of one library."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}


def _python(place: pathlib.Path) -> pathlib.Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
