"""launch/tpu_vm.sh with a stand-in for gcloud, whose two hosts are folders of this machine."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from tests.launch.commands_on_path import with_lines, write_command

HOSTS = 2
# Notes every call. Runs a command in the home folder of each host that --worker names, and copies files there and back.
GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys

cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
*_, kind, verb = group = sys.argv[1:5]
names = [word for word in sys.argv[5:] if not word.startswith("--")]
options = dict(word.partition("=")[::2] for word in sys.argv[5:] if word.startswith("--"))
with (cloud / "calls").open("a") as file:
    print(json.dumps([*group, names, options]), file=file)
worker = options.get("--worker")
homes = sorted(cloud.glob("host*")) if worker == "all" else [cloud / f"host{worker}"]
if verb == "ssh":
    for home in homes:
        environment = os.environ | {"HOME": str(home)}
        subprocess.run(["bash", "-c", options["--command"]], env=environment, cwd=home, check=True)
elif verb == "scp":
    source, to = names
    if to.endswith(":"):
        for home in homes:
            shutil.copy(source, home)
    else:
        shutil.copytree(source.partition(":")[2], pathlib.Path(to) / "export")
elif verb == "describe":
    states = (cloud / "states").read_text().split()
    (cloud / "states").write_text(" ".join(states[1:]))
    print(states[0])
"""
# What the hosts run; the environment's Python notes its arguments and trains until SIGTERM.
PYTHON3 = """
import os, pathlib, sys

words = sys.argv[1:]
if words[:3] == ["-m", "pip", "wheel"]:
    (pathlib.Path("dist")).mkdir()
    pathlib.Path("dist/gadjax-0.1.0-py3-none-any.whl").write_text("a wheel")
elif words == ["-m", "pip", "install", "--quiet", "--user", "uv"]:
    uv = pathlib.Path.home() / ".local/bin/uv"
    uv.parent.mkdir(parents=True, exist_ok=True)
    uv.unlink(missing_ok=True)
    uv.symlink_to(os.environ["FAKE_UV"])
else:
    sys.exit(f"python3 {words}")
"""
UV = """
import os, pathlib, sys

words = [word for word in sys.argv[1:] if not word.startswith("--quiet")]
with (pathlib.Path.home() / "uv").open("a") as file:
    print(*words, file=file)
if words[0] == "venv":
    python = pathlib.Path(words[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(os.environ["FAKE_TRAIN"])
"""
TRAIN = """
import json, pathlib, signal, sys

def stop(*_):
    print("saved")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
print(json.dumps(sys.argv[1:]), flush=True)
signal.pause()
"""
SUDO = "import os, sys\nos.execvp(sys.argv[1], sys.argv[1:])\n"
NOTED = """
import pathlib, sys

with (pathlib.Path.home() / pathlib.Path(sys.argv[0]).name).open("a") as file:
    print(*sys.argv[1:], file=file)
"""


class Cloud:
    """A folder with the stand-ins, and the script with a user's lines."""

    def __init__(self, folder: pathlib.Path, script: pathlib.Path, **lines: str):
        self.folder = folder
        for host in range(HOSTS):
            (folder / f"host{host}").mkdir()
        (folder / "states").touch()
        for name, code in {"gcloud": GCLOUD, "python3": PYTHON3, "sudo": SUDO}.items():
            write_command(folder / "bin", name, code)
        for name in ("mount", "apt-get"):
            write_command(folder / "bin", name, NOTED)
        write_command(folder / "bin", "mountpoint", "raise SystemExit(1)")
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_CLOUD": str(folder),
            "FAKE_UV": str(write_command(folder, "uv", UV)),
            "FAKE_TRAIN": str(write_command(folder, "train", TRAIN)),
            "POLL_SECONDS": "0",
        }
        lines = {
            "mounted": str(folder / "mounted"),
            "name": "mine",
            "flags": "('--config.log.wandb_project=a b')",
            **lines,
        }
        self.script = with_lines(script, folder / "tpu_vm.sh", **lines)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """The script with these arguments, in a folder of its own."""
        command = ["bash", str(self.script), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list:
        """What gcloud was asked, and how: words, names and options."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def verbs(self) -> list[str]:
        return [call[3] for call in self.calls()]

    def host(self, number: int, name: str) -> str:
        """The text of a file in a host's home folder."""
        return (self.folder / f"host{number}" / name).read_text()

    def wait_for_logs(self, *hosts: int, lines: int = 1) -> None:
        """Waits until the logs of these hosts have so many lines."""
        end = time.monotonic() + 60
        while any(self.host(host, "gadjax.log").count("\n") < lines for host in hosts):
            assert time.monotonic() < end
            time.sleep(0.02)

    def end(self, host: int) -> None:
        """Ends what the host runs."""
        os.kill(int(self.host(host, "gadjax.pid")), signal.SIGTERM)


@pytest.fixture
def script(repo) -> pathlib.Path:
    return repo / "launch" / "tpu_vm.sh"


def test_create(script, tmp_path):
    cloud = Cloud(tmp_path, script)
    assert cloud.run("create").returncode == 0
    (call,) = cloud.calls()
    assert call[:5] == ["compute", "tpus", "tpu-vm", "create", ["mine"]]
    assert call[5] == {
        "--zone": "us-east5-b",
        "--accelerator-type": "v6e-8",
        "--spot": "",
        "--version": "v2-alpha-tpuv6e",
    }


def test_without_terms_no_empty_argument_is_passed(script, tmp_path):
    cloud = Cloud(tmp_path, script, terms="")
    assert cloud.run("create").returncode == 0
    assert cloud.calls()[0][4] == ["mine"] and "--spot" not in cloud.calls()[0][5]


def test_a_queued_resource_is_waited_for(script, tmp_path):
    cloud = Cloud(tmp_path, script, queued="yes")
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    done = cloud.run("create")
    assert done.returncode == 0 and "is ACTIVE" in done.stdout
    assert cloud.verbs() == ["create", "describe", "describe", "describe"]
    create = cloud.calls()[0]
    assert create[2] == "queued-resources"
    assert create[5]["--runtime-version"] == "v2-alpha-tpuv6e" and create[5]["--node-id"] == "mine"


def test_a_queued_resource_that_fails_ends_the_wait(script, tmp_path):
    cloud = Cloud(tmp_path, script, queued="yes")
    (tmp_path / "states").write_text("PROVISIONING FAILED")
    done = cloud.run("create")
    assert done.returncode == 1 and "is FAILED" in done.stdout


def test_install_start_stop_fetch(script, tmp_path):
    cloud = Cloud(tmp_path, script)
    installed = cloud.run("install")
    assert installed.returncode == 0, installed.stderr
    assert cloud.run("install").returncode == 0, "a second time, as after a new commit"
    for host in range(HOSTS):
        home = tmp_path / f"host{host}"
        assert cloud.host(host, "mount").splitlines()[0] == f"-t nfs 10.0.0.2:/share {tmp_path / 'mounted'}"
        made, *packages = cloud.host(host, "uv").splitlines()
        assert made == f"venv --python=3.12 {home}/gadjax-env"
        python, wheel = f"{home}/gadjax-env/bin/python", f"{home}/gadjax-0.1.0-py3-none-any.whl"
        assert packages == [f"pip install --python {python} --reinstall-package=gadjax {wheel}[tpu]"] * 2

    assert cloud.run("start", "--config.gad.steps=3").returncode == 0
    cloud.wait_for_logs(0, 1)
    workdir = tmp_path / "mounted" / "mine"
    expected = ["-m", "gadjax.train", "--config=qwen7b", f"--workdir={workdir}", "--config.log.wandb_project=a b"]
    for host in range(HOSTS):
        assert json.loads(cloud.host(host, "gadjax.log")) == [*expected, "--config.gad.steps=3"]

    assert cloud.run("stop").returncode == 0
    cloud.wait_for_logs(0, lines=2)
    assert cloud.host(0, "gadjax.log").endswith("saved\n")
    assert "saved" not in cloud.host(1, "gadjax.log"), "gadjax on the first host tells the others"
    cloud.end(1)

    (workdir / "export" / "generator").mkdir(parents=True)
    (workdir / "export" / "generator" / "config.json").write_text("{}")
    assert cloud.run("fetch").returncode == 0
    assert (tmp_path / "export" / "generator" / "config.json").read_text() == "{}"


def test_gadjax_takes_the_arguments(script, tmp_path, train_takes):
    """With the lines as they are in the file."""
    cloud = Cloud(tmp_path, script, flags=re.search(r"^flags=(\(.*?^\))", script.read_text(), re.M | re.S)[1])
    assert cloud.run("install").returncode == 0
    assert cloud.run("start").returncode == 0
    cloud.wait_for_logs(0, 1)
    taken = train_takes(json.loads(cloud.host(0, "gadjax.log")))
    assert taken["config"].data.train == "/mnt/gadjax/teacher.parquet"
    for host in range(HOSTS):
        cloud.end(host)


def test_resume_makes_the_tpu_anew_and_starts_the_run(script, tmp_path):
    cloud = Cloud(tmp_path, script)
    done = cloud.run("resume")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs() == ["delete", "create", "scp", "ssh", "ssh"]
    cloud.wait_for_logs(0, 1)
    for host in range(HOSTS):
        cloud.end(host)


def test_a_step_that_fails_ends_the_command(script, tmp_path):
    cloud = Cloud(tmp_path, script)
    write_command(tmp_path / "bin", "mount", "raise SystemExit('mount.nfs: access denied')")
    done = cloud.run("resume")
    assert done.returncode != 0 and "access denied" in done.stderr
    assert cloud.verbs() == ["delete", "create", "scp", "ssh"], "nothing is started"


def test_help_names_every_command(script, tmp_path):
    done = Cloud(tmp_path, script).run()
    cases = re.findall(r"^([a-z]+)\)", script.read_text(), re.M)
    assert done.returncode == 2 and len(cases) == 8
    assert re.findall(r"tpu_vm\.sh ([a-z]+)", done.stdout) == cases
