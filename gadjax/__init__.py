"""gadjax: black-box LLM distillation in JAX by Generative Adversarial Distillation (arXiv 2511.10643).

    import gadjax

    figures = gadjax.train("demo", "/tmp/demo")
    model = gadjax.load("/tmp/demo")
    model.generate(["Write one short sentence about a brave fox in the snow."])
    gadjax.read_run("/tmp/demo").heldout

docs/python.md describes the functions. Each is imported, with JAX where it needs it, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gadjax.version import __version__

if TYPE_CHECKING:
    from gadjax.collect import run as collect
    from gadjax.config import load_config
    from gadjax.evaluate import run as evaluate
    from gadjax.loading import LoadedModel, load
    from gadjax.plan import run as plan
    from gadjax.run_log import RunLog, read_run
    from gadjax.train import run as train

_COMMANDS = ("collect", "evaluate", "plan", "train")  # modules that can be called (`gadjax.callable_module`)
_PLACES = {
    "load_config": "gadjax.config",
    "load": "gadjax.loading",
    "LoadedModel": "gadjax.loading",
    "read_run": "gadjax.run_log",
    "RunLog": "gadjax.run_log",
}
__all__ = [
    "LoadedModel",
    "RunLog",
    "__version__",
    "collect",
    "evaluate",
    "load",
    "load_config",
    "plan",
    "read_run",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a function of the package when it is first used."""
    if name in _COMMANDS:
        return importlib.import_module(f"gadjax.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'gadjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
