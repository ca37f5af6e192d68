"""What modules import, read from their text."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Container


def sources(package: pathlib.Path) -> dict[str, str]:
    """Text of a package's modules, by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def room(module: str) -> str:
    """The folder or module right below the package: "models" for gadjax.models.decoder."""
    return module.split(".")[1] if "." in module else module


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Which of the modules each one imports, wherever the import stands."""
    return {module: _imported(text, texts) & texts.keys() - {module} for module, text in texts.items()}


def _imported(text: str, modules: Container[str]) -> set[str]:
    """Names of modules. `from PACKAGE import MODULE` takes the module; what the package itself defines, it does not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in found}
    return names


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that can be reached from each other."""
    reached = {module: _reached(module, edges) for module in edges}
    groups = {frozenset(other for other in found if module in reached[other]) for module, found in reached.items()}
    return sorted(sorted(group) for group in groups if group)


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for found in edges[waiting.pop()] - seen:
            seen.add(found)
            waiting.append(found)
    return seen


def has_quick_test(path: pathlib.Path) -> bool:
    """Whether a test file marks itself, or one of its tests, as quick."""
    return "pytest.mark.quick" in path.read_text(encoding="utf-8")
