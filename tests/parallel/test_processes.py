"""The start of several processes, with a stand-in for JAX's own, and what they agree on."""

from __future__ import annotations

import socket
import subprocess
import sys

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from gadjax.errors import UserError
from gadjax.parallel import liveness, processes

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def started(monkeypatch):
    """The arguments, without time limits, of each call of `jax.distributed.initialize`, outside any cluster."""
    calls = []

    def initialize(*, initialization_timeout, heartbeat_timeout_seconds, shutdown_timeout_seconds, **arguments):
        assert initialization_timeout > 300
        assert heartbeat_timeout_seconds == liveness.HEARTBEAT and shutdown_timeout_seconds == liveness.SHUTDOWN
        calls.append(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "LivenessWatch", lambda client: None)
    monkeypatch.setattr(processes, "_watches", [])
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", False)
    others = "CUDA_VISIBLE_DEVICES", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"
    for name in (*SLURM, *others, "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def metadata(monkeypatch):
    """Makes this a TPU VM whose metadata server lists these hosts; with None, a question to it fails the test."""

    def make(hosts: list[str] | None) -> None:
        def get(key):
            assert hosts is not None, "a question over the network"
            answers = {"worker-network-endpoints": ",".join(hosts), "agent-worker-number": "0", "tpu-env": ""}
            return answers[key], 200

        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get)

    return make


def test_one_process_starts_nothing(started):
    processes.start()
    processes.start("host:1234", 1, 0)
    assert started == []


def test_flags(started):
    processes.start("host:1234", 4, 3)
    (call,) = started
    assert call == {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1234", None, None), "--num_processes and --process_id missing: give --coordinator"),
        ((None, 2, 0), "--coordinator missing"),
        ((None, None, 0), "--coordinator and --num_processes missing"),
        (("host", 2, 0), "--coordinator=host is not HOST:PORT"),
        (("host:0", 2, 0), "is not HOST:PORT"),
        (("host:70000", 2, 0), "is not HOST:PORT"),
        (("host:1234", 2, 2), "--process_id=2 of --num_processes=2: processes are numbered from 0"),
        (("host:1234", 2, -1), "--process_id=-1"),
        (("host:1234", 0, 0), "--num_processes=0"),
    ],
)
def test_flags_that_cannot_work(started, arguments, message):
    with pytest.raises(UserError, match=message):
        processes.start(*arguments)
    assert started == []


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),  # two tasks per node: JAX takes one GPU for each
        ({"CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2", "SLURM_STEP_NUM_NODES": "4"}, [0, 1, 2]),
    ],
)
def test_slurm(started, monkeypatch, environment, gpus):
    for name, value in (SLURM | environment).items():
        monkeypatch.setenv(name, value)
    processes.start()
    (call,) = started
    assert call == {"local_device_ids": gpus}


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "1"},  # an interactive shell in an allocation of four tasks
        {"SLURM_STEP_NODELIST": None},  # a batch script, before srun
    ],
)
def test_one_task_of_slurm(started, monkeypatch, environment):
    for name, value in (SLURM | environment).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    processes.start()
    assert started == []


def test_flags_go_before_slurm(started, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    processes.start("host:1234", 2, 1)
    assert started[0]["coordinator_address"] == "host:1234"


@pytest.mark.parametrize(("hosts", "pod"), [(["10.0.0.1"], False), (["10.0.0.1", "10.0.0.2"], True)])
def test_tpu_vm(started, metadata, hosts, pod):
    metadata(hosts)
    processes.start()
    assert len(started) == pod


@pytest.mark.parametrize(
    ("environment", "pod"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_PROCESS_ADDRESSES": "local"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_tpu_hosts_in_the_environment(started, metadata, monkeypatch, environment, pod):
    """On GKE, and in notebooks with one host, the metadata server is not asked."""
    metadata(None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start()
    assert len(started) == pod


def python(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


START = """
import sys
from gadjax.errors import run_command
from gadjax.parallel import processes
run_command(lambda: processes.start(sys.argv[1], 2, int(sys.argv[2]), patience=2))
"""


@pytest.mark.parametrize("process_id", [0, 1])
def test_others_that_do_not_come(free_port, process_id):
    coordinator = f"127.0.0.1:{free_port()}"
    status, _, err = finish(python("-c", START, coordinator, str(process_id)))
    assert status == 2
    assert err == (
        f"error: waited 2 s for the processes at --coordinator={coordinator}: is process 0 running there, can its port "
        "be reached, and are all 2 running?\n"
    )


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as other:
        coordinator = f"127.0.0.1:{other.getsockname()[1]}"
        status, _, err = finish(python("-c", START, coordinator, "0"))
    assert status == 2
    assert err == (
        f"error: --coordinator={coordinator}: process 0 cannot listen at its port (Address already in use): choose "
        "another\n"
    )


AGREE = """
import sys
from gadjax.errors import UserError
from gadjax.parallel import processes
me = int(sys.argv[2])
processes.start(sys.argv[1], 2, me)

def attempt(work):
    try:
        work()
    except UserError as error:
        print(f"{type(error).__name__}: {error}")

def block(failing):
    with processes.together():
        if me in failing:
            raise UserError(f"no file on {me}")

assert processes.count() == 2 and processes.is_first() == (me == 0)
attempt(lambda: block([]))
attempt(lambda: block([0]))
attempt(lambda: block([1]))
attempt(lambda: block([0, 1]))
attempt(lambda: processes.check_equal({"data": "x" * 100, "seed": "1"}))
attempt(lambda: processes.check_equal({"the_data": "x", "seed": str(me), "stages": str(me)}))
"""


def test_an_error_of_one_is_every_one_s(free_port):
    coordinator = f"127.0.0.1:{free_port()}"
    running = [python("-c", AGREE, coordinator, str(index)) for index in range(2)]
    for kind, process in zip(["UserError", "SaidElsewhere"], running, strict=True):
        status, out, err = finish(process)
        assert status == 0, err
        assert [line for line in out.splitlines() if line.startswith(kind)] == [
            f"{kind}: no file on 0",
            f"{kind}: process 1: no file on 1",
            f"{kind}: no file on 0",
            f"{kind}: process 1 differs from process 0 in its seed, stages: start every process with the same command, "
            "on the same files",
        ]


def test_one_process_agrees_with_itself():
    with processes.together():
        pass
    processes.check_equal({"seed": "1"})
    with pytest.raises(UserError, match=r"^as it is$"), processes.together():
        raise UserError("as it is")


def test_processes_with_other_configs(train_together, tmp_path):
    """The command prints one line in one process, ends with status 2 in both, and writes nothing."""
    first, second = train_together({}, tmp_path / "run", devices=1, last={"seed": 7})
    assert (first.status, second.status) == (2, 2)
    assert first.err == (
        "error: process 1 differs from process 0 in its config: start every process with the same command, on the same "
        "files\n"
    )
    assert not second.err
    assert not (tmp_path / "run").exists()
