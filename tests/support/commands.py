"""A fixture that runs a command of gadjax inside the tests' process."""

from __future__ import annotations

import runpy
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Finished(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capfd) -> Callable[..., Finished]:
    """Runs `python -m MODULE ARGUMENTS` inside this process."""
    from absl import flags

    def forget() -> None:
        """Each call of a command defines its flags anew; those of the last would clash."""
        ours = {
            flag.name
            for module, defined in flags.FLAGS.flags_by_module_dict().items()
            for flag in defined
            if "gadjax" in module or flag.name.partition(".")[0] == "config"
        }
        for name in ours & set(flags.FLAGS):
            delattr(flags.FLAGS, name)

    def run(module: str, *arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        capfd.readouterr()
        try:
            with warnings.catch_warnings(), pytest.raises(SystemExit) as exit:
                warnings.simplefilter("ignore", RuntimeWarning)  # the module may be imported already
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            forget()
        return Finished(exit.value.code or 0, *capfd.readouterr())

    return run
