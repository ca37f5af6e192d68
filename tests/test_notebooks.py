"""The notebooks run from their first cell to their last, and their stored outputs are of one whole run."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.environment import quick_environment
from tests.teacher.fake_server import FakeServer

NOTEBOOKS = ("change_the_method", "gad_colab", "gad_tpu_vm", "read_a_run")
LARGEST = 500_000  # bytes of a notebook with its outputs
SCALE = 0.01


@pytest.fixture
def execute(repo, tmp_path, monkeypatch):
    """Runs a notebook in an empty folder with some of its parameters replaced; gives what it printed."""
    for name, value in quick_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(repo), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")

    def run(name: str, **parameters: Any) -> str:
        notebook = nbformat.read(repo / "notebooks" / f"{name}.ipynb", as_version=4)
        _replace(notebook, parameters)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return "".join(output.get("text", "") for cell in _code(notebook) for output in cell.outputs)

    return run


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _replace(notebook: Any, parameters: dict[str, Any]) -> None:
    """Gives parameters other values, each in the one line of the cells tagged "parameters" that sets it."""
    cells = [cell for cell in _code(notebook) if "parameters" in cell.metadata.get("tags", ())]
    for name, value in parameters.items():
        found = [re.subn(rf"^{name} = .*$", lambda _: f"{name} = {value!r}", cell.source, flags=re.M) for cell in cells]  # noqa: B023
        assert sum(count for _, count in found) == 1, name
        for cell, (source, _) in zip(cells, found, strict=True):
            cell.source = source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs(repo, name):
    path = repo / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cells = _code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # all of one run, in their order
    assert any(cell.outputs for cell in cells)
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert not re.search(r"/(root|home|tmp|work)/", str(output)), "a path of the machine that it ran on"
    assert path.stat().st_size < LARGEST


def test_all_are_tested(repo):
    assert sorted(path.stem for path in pathlib.Path(repo, "notebooks").glob("*.ipynb")) == list(NOTEBOOKS)


@pytest.fixture
def hub_student(other_student, tmp_path) -> str:
    """A student with weights, in place of one from the hub; it has room for the notebook's prompts."""
    copy = shutil.copytree(other_student, tmp_path / "hub_student")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return str(copy)


@pytest.mark.slow  # compiles all programs of the demo
def test_gad_colab(execute, hub_student, tmp_path):
    with FakeServer() as server:
        execute("gad_colab", SCALE=SCALE, STUDENT=hub_student, TEACHER="teacher", BASE_URL=server.base_url)
    assert (tmp_path / "demo/export/discriminator/model.safetensors").exists()
    assert (tmp_path / "mine/export/generator/model.safetensors").exists()


@pytest.mark.slow  # compiles all programs of the demo
def test_change_the_method(execute, tmp_path):
    execute("change_the_method", SCALE=SCALE)
    runs = {run.name for run in tmp_path.iterdir() if (run / "export").is_dir()}
    assert {"start", "gad", "hinge", "twelve"} <= runs


@pytest.mark.slow  # compiles all programs of the demo
def test_read_a_run(execute, tmp_path):
    execute("read_a_run", SCALE=SCALE)
    assert (tmp_path / "evaluation/report.html").exists()


@pytest.mark.slow  # compiles all programs of the demo
def test_gad_tpu_vm(execute, tmp_path):
    """The run gets SIGTERM as in a preemption, and the same command ends it."""
    printed = execute("gad_tpu_vm", SCALE=SCALE)
    assert "status 75" in printed and "status 0" in printed and "continuing" in printed
