"""The configs that gadjax ships: found by name, copied to anywhere, hidden by nothing."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import gadjax
from gadjax.config import load_config, shipped
from gadjax.errors import UserError

pytestmark = pytest.mark.quick


def test_a_name_and_its_file_are_the_same_config(repo):
    by_name = load_config("qwen14b_lora")
    assert by_name.lora.rank == 32 and by_name.student == "Qwen/Qwen2.5-14B-Instruct"
    assert load_config(repo / "configs" / "qwen14b_lora.py").to_dict() == by_name.to_dict()


def test_a_copy_works_anywhere(tmp_path):
    """Also beside a package of the user's that has the name of the folder of configs."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('hidden')\n")
    for name in shipped.names():
        (tmp_path / f"my_{name}.py").write_text(shipped.shipped_path(name).read_text())
    program = f"from gadjax.config import load_config\nfor name in {shipped.names()}: load_config(f'my_{{name}}.py')"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=_environment(), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    control = subprocess.run([sys.executable, "-c", "import configs"], cwd=tmp_path, capture_output=True, text=True)
    assert "hidden" in control.stderr


def test_a_copy_of_the_demo_has_its_data(tmp_path):
    copy = tmp_path / "mine.py"
    copy.write_text(shipped.shipped_path("demo").read_text())
    config = load_config(copy)
    assert config.to_dict() == load_config("demo").to_dict()
    assert config.data.train == str(shipped.demo_assets() / "train.parquet")


def test_loading_leaves_no_module():
    before = set(sys.modules)
    load_config("demo")
    assert set(sys.modules) == before


def test_a_config_may_hold_a_dataclass(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom gadjax.config import default_config\n\n\n"
        "@dataclasses.dataclass\nclass Size:\n    steps: int = 7\n\n\n"
        "def get_config():\n    config = default_config()\n    config.gad.steps = Size().steps\n    return config\n"
    )
    assert load_config(path).gad.steps == 7


def test_every_config_says_what_it_is():
    assert all(len(shipped.describe(name)) > 20 for name in shipped.names())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("qwen14", r"^config qwen14: gadjax ships no config of this name; did you mean qwen14b\? There are base, demo"),
        ("nothing_like_it", r"of this name\. There are base, demo, llama3b, .*: give the path, with \.py at its end$"),
        ("absent/demo.py", r"^config absent/demo\.py: no such file; the shipped one is --config=demo$"),
        ("absent/mine.py", r"^config absent/mine\.py: no such file$"),
    ],
)
def test_what_is_not_there(given, message):
    with pytest.raises(UserError, match=message):
        load_config(given)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "get_config = 1", "expected a function get_config"),
        ("b.py", "def get_config():\n    return {}", "returns a ConfigDict"),
        ("c.txt", "def get_config():\n    return {}", r"a Python file, whose name ends in \.py"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"^config .*{name}: .*{message}"):
        load_config(tmp_path / name)


@pytest.mark.parametrize("given", ["mine.py", "./mine.py", "/tmp/a/mine.py", "mine.py:tiny", ""])
def test_a_file_stays_as_it_is(given):
    assert shipped.config_path(given) == given


def test_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shipped.config_path("~/mine.py") == str(tmp_path / "mine.py")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(pathlib.Path(gadjax.__file__).parent.parent)}
