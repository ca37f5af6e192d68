"""The configs that gadjax ships, found by name, and the files of any config.

They are the folder configs/ of the repository. A wheel holds the same folder inside of the package, as gadjax/configs
(hatch_build.py). Nothing imports it as a package, so a user's own folder of this name hides nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
import re
import sys

from ml_collections import ConfigDict

from gadjax.errors import UserError, unknown
from gadjax.files import expand

_NAME = re.compile(r"[\w-]+")
_MODULE = "gadjax_config_file"


def folder() -> pathlib.Path:
    """The folder of the shipped configs: of the wheel, or of the repository that this package lies in."""
    package = pathlib.Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def demo_assets() -> pathlib.Path:
    """The folder of the demo's data and of its student, which is shipped with the configs."""
    return folder() / "demo_assets"


def names() -> list[str]:
    """The names of the shipped configs, in order."""
    return sorted(path.stem for path in folder().glob("*.py"))


def describe(name: str) -> str:
    """The first line of a shipped config's docstring."""
    text = shipped_path(name).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def shipped_path(name: str, flag: str = "") -> pathlib.Path:
    """The file of a shipped config.

    Args:
      name: of the config.
      flag: that gave the name, for the message: "--config=", for example.

    Raises:
      UserError: there is none of this name; the message has those that there are.
    """
    known = names()
    if name in known:
        return folder() / f"{name}.py"
    raise UserError(
        f"{flag}{name}: gadjax ships no config of this name{unknown(name, known)} There are {', '.join(known)}. "
        "Your own are files: give the path, with .py at its end"
    )


def config_path(given: str, flag: str = "--config=") -> str:
    """The path of the config that a user gives: a shipped one by its name, any other one by its file.

    FILE:TEXT passes a text to the file's get_config, so what follows a colon stays.

    Raises:
      UserError: what looks like a name is that of no shipped config.
    """
    if _NAME.fullmatch(given):
        return str(shipped_path(given, flag))
    return str(expand(given)) if given.startswith("~") else given


def load_config(config: str | os.PathLike[str]) -> ConfigDict:
    """The config that a name or a file stands for; its fields can be set before it is used.

    Args:
      config: the name of a shipped config, such as "demo", or the path of a Python file with `get_config()`.

    Raises:
      UserError: there is no such config, or the file has no `get_config()` that returns a `ConfigDict`. A mistake in
        the file's code is raised as it is.
    """
    path = pathlib.Path(config_path(os.fspath(config), "config "))
    if not path.is_file():
        raise UserError(f"config {path}: no such file{hint(path)}")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path}: expected a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        found = get_config() if callable(get_config) else None
    finally:
        del sys.modules[_MODULE]
    if not isinstance(found, ConfigDict):
        raise UserError(f"config {path}: expected a function get_config() that returns a ConfigDict")
    return found


def hint(path: str | os.PathLike[str]) -> str:
    """The end of a message about a config's file that is not there: which shipped config it may be."""
    name = pathlib.Path(path).stem
    return f"; the shipped one is --config={name}" if name in names() else ""
