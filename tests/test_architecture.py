"""The shape of the package: floors, no circle, short files, docstrings in plain words, quick tests everywhere."""

from __future__ import annotations

import ast
import pathlib

import pytest

from tests.support import imports

pytestmark = pytest.mark.quick

# The lowest first. A module imports from its own folder and from lower floors; docs/architecture.md says what is where.
FLOORS = (
    {"callable_module", "errors", "version"},
    {"files", "segments", "stage_table", "task_progress"},
    {"append_log", "config", "hub", "metric_views"},
    {"answer_file", "metrics"},
    {"run_log"},
    {"parallel"},
    {"commands", "kernels"},
    {"models"},
    {"data"},
    {"rollout", "teacher"},
    {"distill", "progress"},
    {"collecting", "extensions"},
    {"setup"},
    {"workdir"},
    {"evaluation"},
    {"trainer"},
    {"planning"},
    {"chat", "collect", "evaluate", "export", "generate", "plan", "score", "train"},
    {"cli", "loading"},
    {"__main__"},
)
# What the floors alone would allow.
STRANGERS = {("data", "models"), ("teacher", "models")}
LINES = 350
# A docstring names its subject first: none begins with a word that stands for a noun before it.
UNCLEAR = ("Of ", "Those ", "That ", "With ", "Whose ")


@pytest.fixture(scope="module")
def sources(repo: pathlib.Path) -> dict[str, str]:
    """Text of the package's modules, by dotted name."""
    return imports.sources(repo / "gadjax")


@pytest.fixture(scope="module")
def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which modules of the package each module imports, anywhere in it: in functions and for types too."""
    return imports.graph(sources)


def test_every_module_has_a_floor(graph):
    assert {imports.room(module) for module in graph} - {"gadjax"} == set().union(*FLOORS)


def test_nothing_imports_from_above_or_beside(graph):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    edges = [(module, found) for module, all_found in graph.items() for found in all_found]
    across = [
        (module, found) for module, found in edges if len({imports.room(module), imports.room(found), "gadjax"}) == 3
    ]
    assert len(across) > 100
    rooms = [(module, found, imports.room(module), imports.room(found)) for module, found in across]
    assert [
        f"{module} -> {found}" for module, found, a, b in rooms if floor[a] <= floor[b] or (a, b) in STRANGERS
    ] == []


def test_no_modules_import_each_other_in_a_circle(graph):
    assert imports.circles(graph) == []


def test_a_circle_is_seen():
    """Through a function's import and one for types."""
    texts = {
        "gadjax.a": "from gadjax import b",
        "gadjax.b": "def f():\n    import gadjax.c",
        "gadjax.c": "if TYPE_CHECKING:\n    from gadjax.a import A",
        "gadjax.d": "from gadjax.a import A",
    }
    assert imports.circles(imports.graph(texts)) == [["gadjax.a", "gadjax.b", "gadjax.c"]]


def test_files_are_short(repo):
    files = [path for folder in ("gadjax", "tests", "benchmarks", "configs") for path in (repo / folder).rglob("*.py")]
    lines = {str(path.relative_to(repo)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > LINES} == {}


def test_a_docstring_names_its_subject_first(sources):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    unclear = [
        f"{module}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds) and (text := ast.get_docstring(node)) and text.startswith(UNCLEAR)
    ]
    assert unclear == []


def test_every_package_has_a_quick_test(repo):
    """`python -m pytest -m quick` covers them all."""
    folders = sorted(path.parent.name for path in (repo / "gadjax").glob("*/__init__.py"))
    assert len(folders) > 10
    quick = [
        folder for folder in folders if any(map(imports.has_quick_test, (repo / "tests" / folder).glob("test_*.py")))
    ]
    assert quick == folders
