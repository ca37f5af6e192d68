"""Figures of programs that were compiled before, in files that are named by everything that they depend on.

JAX's own cache cannot serve here: it holds compiled programs, and those for devices that are not here cannot be loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import pathlib

import jax

from gadjax import files
from gadjax.planning import hlo, hlo_costs, measured
from gadjax.planning.measured import LoweredProgram, Measured
from gadjax.planning.targets import Target, described

_COMPILERS = ("jax", "libtpu", "nvidia-")  # how the names of packages begin that compile, or that compilers call
_VARIABLES = ("XLA_", "LIBTPU_", "TPU_")  # how the names of environment variables begin that compilers read


class KeptFigures:
    """A folder of figures for one target, or none."""

    def __init__(self, folder: pathlib.Path | None, target: Target, devices: list[jax.Device]):
        """Reads what figures depend on beside the program.

        Args:
          folder: made when it is first written to. None: nothing is found, and nothing is kept.
          target, devices: that programs are compiled for.
        """
        self.folder = folder
        self._surroundings = _digest(
            described(target),
            devices[0].client.platform_version,
            sorted(_versions().items()),
            sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)),
            sorted((name, repr(value)) for name, value in jax.config.values.items() if "cache" not in name),
            [inspect.getsource(module) for module in (measured, hlo, hlo_costs)],
        )

    def key(self, program: LoweredProgram) -> str:
        """The name of a program's figures, the same for programs that are compiled alike and are read alike."""
        return _digest(self._surroundings, program.identity)

    def find(self, key: str) -> Measured | None:
        """The figures of this name. None if there are none, or if their file is damaged."""
        if self.folder is None:
            return None
        try:
            digest, _, text = self._file(key).read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return None
        return Measured.from_json(json.loads(text)) if digest == _digest(text) else None

    def keep(self, key: str, figures: Measured) -> None:
        """Writes figures to their file, in one step.

        Raises:
          OSError: the folder cannot be written.
        """
        if self.folder is None:
            return
        text = json.dumps(dataclasses.asdict(figures))
        self.folder.mkdir(parents=True, exist_ok=True)
        files.replace(self._file(key), f"{_digest(text)}\n{text}".encode())

    def _file(self, key: str) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / key


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """The versions of the installed packages that a compiled program may depend on."""
    found = ((each.name, each.version) for each in importlib.metadata.distributions())
    return {name: version for name, version in found if name.startswith(_COMPILERS)}
