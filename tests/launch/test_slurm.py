"""launch/slurm.sbatch under stand-ins for srun and scontrol: what it starts, and when it queues the job again."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from gadjax.parallel import processes
from gadjax.workdir.checkpoints import Checkpoints
from tests.launch.commands_on_path import with_lines, write_command

pytestmark = pytest.mark.quick

# Starts the command on each node with the variables that srun sets (Slurm 22.05), passes SIGTERM on to all of them as
# Slurm does, and ends with the highest status.
SRUN = """
import json, os, pathlib, signal, subprocess, sys

options = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[1:]
while command[0].startswith("--"):
    del command[0]
options = options[: len(sys.argv) - 1 - len(command)]
log = pathlib.Path(os.environ["FAKE_CLUSTER"])
(log / "srun.json").write_text(json.dumps(options))
nodes = os.environ["SLURM_NTASKS"]
started = []
for task in range(int(nodes)):
    variables = {
        "SLURM_STEP_NODELIST": f"node[1-{nodes}]" if int(nodes) > 1 else "node1",
        "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_NUM_TASKS": nodes,
        "SLURM_PROCID": str(task),
        "SLURM_NODEID": str(task),
        "SLURM_LOCALID": "0",
    }
    started.append(subprocess.Popen(command, env=os.environ | variables))
signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in started])
(log / "started").touch()
ended = [process.wait() for process in started]
sys.exit(max(status if status >= 0 else 128 - status for status in ended))
"""
SCONTROL = """
import os, pathlib, sys

with (pathlib.Path(os.environ["FAKE_CLUSTER"]) / "scontrol").open("a") as file:
    print(*sys.argv[1:], file=file)
"""
# Notes how it was called. Its status is that of its task in the file `statuses`; a dash waits for SIGTERM.
TRAIN = """
import json, os, pathlib, signal, sys

folder = pathlib.Path(os.environ["FAKE_CLUSTER"])
task = os.environ["SLURM_PROCID"]
call = {"arguments": sys.argv[1:], "environment": dict(os.environ)}
(folder / f"task{task}.json").write_text(json.dumps(call))
status = (folder / "statuses").read_text().split()[int(task)]
if status == "-":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"waits{task}").write_text(str(os.getpid()))
    while True:
        signal.pause()
sys.exit(int(status))
"""


class Cluster:
    """A folder with the stand-ins, and the script with a user's lines."""

    def __init__(self, folder: pathlib.Path, script: pathlib.Path, **lines: str):
        self.folder = folder
        for name, code in {"srun": SRUN, "scontrol": SCONTROL}.items():
            write_command(folder / "bin", name, code)
        lines = {"python": str(write_command(folder, "python", TRAIN)), "workdir": str(folder / "run"), **lines}
        self.script = with_lines(script, folder / "slurm.sbatch", **lines)

    def start(self, *arguments: str, nodes: int = 1, **variables: str) -> subprocess.Popen:
        """Starts the script as Slurm's batch step."""
        for file in ("started", "scontrol"):
            (self.folder / file).unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_CLUSTER": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": str(nodes),
            "SLURM_CPUS_PER_TASK": "32",
            **variables,
        }
        command = ["bash", str(self.script), *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    @staticmethod
    def end(job: subprocess.Popen, seconds: float = 60) -> str:
        """The output of a job that ends within so many seconds; otherwise all of its processes are killed."""
        try:
            return job.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            raise

    def run(self, statuses: str, *arguments: str, **options) -> tuple[int, str]:
        """The script's status and output; `statuses`: how each task ends."""
        (self.folder / "statuses").write_text(statuses)
        job = self.start(*arguments, nodes=len(statuses.split()), **options)
        output = self.end(job)
        return job.returncode, output

    @property
    def requeued(self) -> list[str]:
        """The calls of scontrol."""
        file = self.folder / "scontrol"
        return file.read_text().splitlines() if file.exists() else []

    def task(self, number: int) -> dict:
        """How one task was called."""
        return json.loads((self.folder / f"task{number}.json").read_text())


@pytest.fixture
def cluster(repo, tmp_path) -> Cluster:
    return Cluster(tmp_path, repo / "launch" / "slurm.sbatch", config="qwen3b")


def wait_for(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 1, 2, 134, 137])
def test_a_run_that_ended_is_not_queued_again(cluster, status):
    assert cluster.run(f"{status}")[0] == status
    assert cluster.requeued == []


def test_a_saved_run_is_queued_again(cluster):
    status, output = cluster.run("75")
    assert (status, cluster.requeued) == (0, ["requeue 7"])
    assert "queueing job 7 again" in output


def test_the_number_of_restarts_is_bounded(cluster):
    assert cluster.run("75", SLURM_RESTART_COUNT="99")[0] == 0
    assert cluster.requeued == ["requeue 7"]
    status, output = cluster.run("75", SLURM_RESTART_COUNT="100")
    assert (status, cluster.requeued) == (75, [])
    assert "restarted 100 times; submit it again to continue" in output


def test_a_requeue_that_slurm_refuses_is_an_error(cluster):
    write_command(cluster.folder / "bin", "scontrol", "raise SystemExit('Job is not allowed to be requeued')")
    status, output = cluster.run("75")
    assert status == 1 and "not allowed" in output


@pytest.mark.parametrize(("statuses", "requeued"), [("75 75", True), ("75 134", False), ("2 2", False), ("0 0", False)])
def test_the_highest_status_of_the_tasks_decides(cluster, statuses, requeued):
    cluster.run(statuses)
    assert bool(cluster.requeued) == requeued


def test_one_node_trains_alone(cluster):
    cluster.run("0")
    assert processes._slurm_tasks(cluster.task(0)["environment"]) == 1


def test_gadjax_takes_the_arguments(repo, tmp_path, train_takes):
    """With the lines as they are in the file."""
    cluster = Cluster(tmp_path, repo / "launch" / "slurm.sbatch")
    cluster.run("0", "--config.gad.steps=3")
    taken = train_takes(cluster.task(0)["arguments"])
    assert taken["config"].student == "Qwen/Qwen2.5-7B-Instruct" and taken["config"].gad.steps == 3
    assert taken["workdir"] == str(tmp_path / "run")
    assert taken["processes"] == (None, None, None)


def test_tasks_of_several_nodes_find_each_other(cluster):
    """By the variables that gadjax and JAX read, with the same arguments, and with all GPUs of their node."""
    cluster.run("0 0 0", "--config.gad.steps=3")
    calls = [cluster.task(number) for number in range(3)]
    assert calls[0]["arguments"][:4] == ["-m", "gadjax.train", "--config=qwen3b", f"--workdir={cluster.folder / 'run'}"]
    assert calls[0]["arguments"][-1] == "--config.gad.steps=3"
    for number, call in enumerate(calls):
        assert call["arguments"] == calls[0]["arguments"]
        environment = call["environment"]
        assert (processes._slurm_tasks(environment), environment["SLURM_PROCID"]) == (3, str(number))
        assert processes._slurm_gpus(environment | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == [0, 1, 2, 3]
    options = json.loads((cluster.folder / "srun.json").read_text())
    assert options == ["--kill-on-bad-exit=0", "--cpus-per-task=32"]


def test_a_job_that_is_cancelled_is_not_queued_again(cluster):
    """Slurm then sends SIGTERM to the script too, which ends before it could."""
    (cluster.folder / "statuses").write_text("-")
    job = cluster.start()
    waits = cluster.folder / "waits0"
    wait_for(lambda: waits.exists() and waits.read_text() != "")
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == -signal.SIGTERM
    os.kill(int(waits.read_text()), signal.SIGTERM)
    cluster.end(job)  # until srun, which holds the output open, has ended
    assert cluster.requeued == []


def test_signals_and_requeues_are_asked_of_slurm(repo):
    lines = (repo / "launch" / "slurm.sbatch").read_text().splitlines()
    asked = {line.split()[1].partition("=")[0]: line.split()[1] for line in lines if line.startswith("#SBATCH ")}
    assert asked["--signal"] == "--signal=TERM@600", "to the tasks: B: would be to the script"
    assert {"--requeue", "--open-mode"} <= set(asked)
    assert asked["--open-mode"].endswith("=append")
    assert asked["--ntasks-per-node"].endswith("=1")


@pytest.mark.slow  # starts the real command twice
def test_a_preempted_run_goes_on_to_its_end(repo, tiny_config, small_student, compilation_cache, tmp_path):
    """The real command: SIGTERM, status 75, queued again, and the second job finishes what the first began."""
    fields = {"student": str(small_student), "stages": ("seqkd",), "data.heldout": ""}
    config = tmp_path / "config.py"
    values = tiny_config(fields | {"seqkd.steps": 60}).to_dict()
    config.write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    cluster = Cluster(
        tmp_path, repo / "launch" / "slurm.sbatch", python=sys.executable, config=str(config), flags="(--noforce)"
    )
    variables = {
        "PYTHONPATH": str(repo),
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    job = cluster.start(**variables)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("train") >= 2, 240)
    srun = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(srun[0]), signal.SIGTERM)
    output = cluster.end(job, 240)
    assert (job.returncode, cluster.requeued) == (0, ["requeue 7"]), output
    assert 2 <= Checkpoints(tmp_path / "run").steps()[-1] < 60

    job = cluster.start(SLURM_RESTART_COUNT="1", **variables)
    output = cluster.end(job, 240)
    assert (job.returncode, cluster.requeued) == (0, []), output
    assert "after step" in output and Checkpoints(tmp_path / "run").steps()[-1] == 60
