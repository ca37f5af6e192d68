"""What a built wheel and sdist hold, and that the wheel works where there is no repository."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gadjax
from gadjax.config import shipped

pytest.importorskip("hatchling", reason="pip install hatchling")
RUBBISH = ("__pycache__", ".pyc", ".partial", ".new")
SHORT = (
    "seqkd.steps=2",
    "warmup.steps=1",
    "gad.steps=1",
    "batch_size=4",
    "evaluation.prompts=4",
    "log.tensorboard=False",
)


def build(source: pathlib.Path, target: str, out: pathlib.Path) -> pathlib.Path:
    """Builds what pip would, without a network, and returns the file."""
    out.mkdir()
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    finished = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def wheel(repo, folder) -> pathlib.Path:
    return build(repo, "wheel", folder / "wheel")


@pytest.fixture(scope="module")
def sdist(repo, folder) -> pathlib.Path:
    return build(repo, "sdist", folder / "sdist")


def files_of(wheel: pathlib.Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def shipped_files(root: pathlib.Path) -> set[str]:
    """The files of a folder that are no rubbish, relative to the folder above it."""
    paths = (path.relative_to(root.parent).as_posix() for path in root.rglob("*") if path.is_file())
    return {path for path in paths if not any(part in path for part in RUBBISH)}


def test_a_wheel_holds_the_package_and_the_configs(repo, wheel):
    found = files_of(wheel)
    info = f"gadjax-{gadjax.__version__}.dist-info"
    expected = shipped_files(repo / "gadjax") | {f"gadjax/{path}" for path in shipped_files(repo / "configs")}
    assert {"gadjax/configs/demo.py", "gadjax/configs/demo_assets/train.parquet", "gadjax/py.typed"} <= expected
    assert {path for path in found if not path.startswith(info)} == expected
    with zipfile.ZipFile(wheel) as archive:
        assert "gadjax = gadjax.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"Version: {gadjax.__version__}\n" in archive.read(f"{info}/METADATA").decode()


def test_an_sdist_builds_the_same_wheel(wheel, sdist, folder):
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    assert unpacked.name == f"gadjax-{gadjax.__version__}"
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "docs/algorithm.md", "tests/conftest.py", "configs/base.py"):
        assert (unpacked / name).is_file(), name
    assert files_of(build(unpacked, "wheel", folder / "again")) == files_of(wheel)


def test_an_editable_wheel_has_no_copy_of_the_configs(repo, folder):
    found = files_of(build(repo, "wheel:editable", folder / "editable"))
    assert not [path for path in found if "configs" in path]
    assert any(path.endswith(".pth") for path in found)


@pytest.mark.slow  # installs the package, and compiles the demo's programs
def test_an_installed_wheel_trains_the_demo(wheel, tmp_path):
    """In an empty folder, with no repository on any path; only the dependencies are those of this environment."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    packages = pathlib.Path(_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # The lines of a .pth are paths; .pth files in those folders, such as an editable gadjax, are not read.
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if "site-packages" in path))
    _output(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    command, elsewhere = home / "bin" / "gadjax", tmp_path / "elsewhere"
    (elsewhere / "configs").mkdir(parents=True)
    (elsewhere / "configs" / "__init__.py").write_text("raise RuntimeError('a package of the user')\n")

    where = _output(python, "-c", "import gadjax; print(gadjax.__file__)", folder=elsewhere)
    assert pathlib.Path(where.strip()).is_relative_to(packages)
    assert _output(command, "--version", folder=elsewhere) == f"gadjax {gadjax.__version__}\n"
    text = _output(command, "config", "demo", folder=elsewhere)
    assert text == shipped.shipped_path("demo").read_text()
    (elsewhere / "mine.py").write_text(text)
    for config in ("demo", "mine.py"):
        flags = (f"--config.{field}" for field in (*SHORT, "evaluation.two_sample_folds=0"))
        told = _output(command, "train", f"--config={config}", "--workdir=run", *flags, folder=elsewhere)
        assert "Held-out prompts" in told
    assert (elsewhere / "run" / "export" / "generator" / "model.safetensors").is_file()


def _output(*command: str | pathlib.Path, folder: pathlib.Path | None = None) -> str:
    others = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")  # of the tests: paths, and eight devices
    environment = {name: value for name, value in os.environ.items() if name not in others}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles faster
    finished = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_tested_versions_are_those_that_the_package_allows(repo):
    """constraints.txt has a version of each dependency, and pyproject.toml allows it."""
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    lines = [line for line in (repo / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    tested = {canonicalize_name(name): version for name, version in pinned.items()}
    needed = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["test"])]
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        if name != "torch":  # an oracle of the tests, whose version has the build's name in it
            assert requirement.specifier.contains(tested[name]), requirement
