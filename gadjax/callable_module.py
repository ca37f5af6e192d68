"""A module that can be called: `gadjax.train` is the command's module and the function, whichever is imported first."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any


class CallableModule(types.ModuleType):
    """A module whose call is that of its function `run`. `help` and notebooks show the function's signature."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.run(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.run)


def make_callable(name: str) -> None:
    """Makes the imported module of this name a `CallableModule`. It must have a function `run`."""
    sys.modules[name].__class__ = CallableModule
