"""The package in Python: light to import, the same results as the commands, and nothing left behind."""

from __future__ import annotations

import gc
import inspect
import re
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

import jax
import pytest

import gadjax
from gadjax.trainer.stage_steps import StageSteps
from tests.teacher.fake_server import FakeServer

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")


def fresh(program: str) -> str:
    """What a program prints in a new process."""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


class TestImport:
    def test_is_light(self):
        loaded = fresh("import sys, gadjax; gadjax.__version__; print(*sys.modules)").split()
        assert "gadjax.version" in loaded
        assert not {"jax", "numpy", "pandas", "absl", "pydantic", "ml_collections", "rich"} & set(loaded)

    def test_names_are_listed_and_found(self):
        assert set(gadjax.__all__) <= set(dir(gadjax))
        assert all(hasattr(gadjax, name) for name in gadjax.__all__)
        with pytest.raises(AttributeError, match="module 'gadjax' has no attribute 'trai'"):
            _ = gadjax.trai

    @pytest.mark.parametrize("name", ["collect", "evaluate", "plan", "train"])
    def test_a_command_is_its_module_and_its_function(self, name):
        """Whichever is imported first."""
        told = f"callable(gadjax.{name}), gadjax.{name}.run.__name__, gadjax.{name}.__name__"
        expected = f"True run gadjax.{name}\n"
        assert fresh(f"import gadjax\nprint({told.replace(', ', ',')}, sep=' ')") == expected
        assert fresh(f"import gadjax.{name}\nfrom gadjax.{name} import run\nprint({told}, sep=' ')") == expected
        function = getattr(gadjax, name)
        assert inspect.signature(function) == inspect.signature(function.run)


class TestTrain:
    def test_a_run_that_was_interrupted_goes_on(self, tiny_config, tmp_path, monkeypatch):
        """As by Ctrl-C in a notebook: nothing stays on the devices, and the same call ends like a whole run."""
        config = tiny_config({"checkpoint.every": 1})
        whole = gadjax.train(config, tmp_path / "whole")
        del whole["before"]
        gc.collect()
        before, handler = _bytes_on_devices(), signal.getsignal(signal.SIGTERM)

        run, made = StageSteps.run, []

        def interrupted(self, *arguments):
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(1)
            return run(self, *arguments)

        monkeypatch.setattr(StageSteps, "run", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps it
            gadjax.train(config, tmp_path / "run")
        gc.collect()
        assert kept.tb is not None
        assert _bytes_on_devices() < before + 10_000  # less than a network
        assert signal.getsignal(signal.SIGTERM) is handler and not _threads()
        monkeypatch.undo()

        figures = gadjax.train(config, tmp_path / "run")
        assert {stage: found for stage, found in figures.items() if stage != "before"} == whole
        log = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert gadjax.train(config, tmp_path / "run") == figures
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == log

    @pytest.mark.parametrize(
        ("config", "workdir", "expected"),
        [("demo", None, "runs/demo"), ("configs/qwen7b.py", None, "runs/qwen7b"), ("demo", "~/here", "HOME/here")],
    )
    def test_a_name_or_a_file(self, repo, tmp_path, monkeypatch, config, workdir, expected):
        from gadjax.trainer import session

        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(repo)
        seen = []
        monkeypatch.setattr(session, "train_and_export", lambda *given, **more: seen.append(given))
        gadjax.train(config, workdir)
        ((given, where, _),) = seen
        assert given.to_dict() == gadjax.load_config(config).to_dict()
        assert str(where) == expected.replace("HOME", str(tmp_path))


@pytest.fixture
def examples(repo, tiny_config, monkeypatch) -> list[str]:
    """The examples of docs/python.md in their order, where every config is a small one."""
    monkeypatch.setattr(gadjax, "load_config", lambda name: tiny_config().unlock(), raising=False)
    return re.findall(r"```python\n(.*?)```", (repo / "docs" / "python.md").read_text(), re.DOTALL)


def test_the_examples_of_the_page(examples, heldout_file, tmp_path, monkeypatch):
    """docs/python.md runs as it stands, but for the student, its data and the API."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(heldout_file, "heldout.parquet")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What is one plus two"}\n')
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    names: dict[str, Any] = {}
    with FakeServer() as server:
        for example in examples[:-1]:
            exec(example.replace("https://HOST/v1", server.base_url), names)
    assert names["figures"]["gad"] and len(names["answers"]) == 1 and names["collection"].rows == 1


@pytest.mark.slow  # compiles every program of a run, with all optimizations
def test_the_example_of_a_plan(examples):
    names: dict[str, Any] = {"gadjax": gadjax, "config": gadjax.load_config("demo")}
    exec(examples[-1], names)
    assert names["plan"]["fits"] is True and {"warmup", "gad"} == set(names["plan"]["step_seconds"])


def _bytes_on_devices() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


def _threads() -> set[str]:
    """Names of the threads that gadjax started and that still run."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("compile")}
