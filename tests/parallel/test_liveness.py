"""If a process is gone, the others end soon, with a line that names it. `-m slow` tests the whole command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from gadjax.parallel.liveness import BEAT, HEARTBEAT, PATIENCE, SHUTDOWN, describe
from tests.runs import untimed

MINUTE = 60
GONE = (
    "error: process {} of this run did not answer for {} s and must be gone: see what was printed there; then start "
    "every process again with the same command, which goes on from the last checkpoint\n"
)

TRAIN = """
import functools, os, signal, sys, time
from gadjax.errors import run_command
from gadjax.parallel import processes
from gadjax.parallel.liveness import LivenessWatch

me, what = int(sys.argv[2]), sys.argv[3]
processes.LivenessWatch = functools.partial(LivenessWatch, beat=0.2, patience=3)

def train():
    processes.start(sys.argv[1], 2, me)
    with processes.together():
        print("together", flush=True)
    with processes.watched():
        if what == "all fail" or (what == "fail" and me == 1):
            raise ValueError("a defect")
        if what == "kill" and me == 1 or what == "kill first" and me == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "freeze" and me == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        with processes.together():
            pass

run_command(train)
"""


@pytest.fixture
def trained(free_port):
    """The status and the stderr of each of two processes. A frozen one is killed after the other has ended."""

    def train(what: str) -> list[tuple[int, str]]:
        command = [sys.executable, "-c", TRAIN, f"127.0.0.1:{free_port()}"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started = [subprocess.Popen([*command, str(index), what], **pipes) for index in range(2)]
        try:
            assert all(process.stdout.readline() for process in started)
            begun = time.monotonic()
            errors = [started[0].communicate(timeout=MINUTE)[1]]
            if what == "freeze":
                started[1].kill()
            errors.append(started[1].communicate(timeout=MINUTE)[1])
            assert time.monotonic() - begun < MINUTE / 2
        finally:
            for process in started:
                process.kill()
        return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]

    return train


def test_a_minute_is_enough():
    """The watch ends a process within a minute, and before JAX's heartbeats do."""
    assert BEAT + PATIENCE < HEARTBEAT / 2 < HEARTBEAT < MINUTE and SHUTDOWN < MINUTE


@pytest.mark.parametrize("what", ["kill", pytest.param("freeze", marks=pytest.mark.slow)])
def test_one_is_gone(trained, what):
    """A frozen process is like a machine that hangs: no connection is closed."""
    first, second = trained(what)
    assert first == (os.EX_TEMPFAIL, GONE.format(1, 3))
    assert second[0] == -signal.SIGKILL


def test_the_first_is_killed(trained):
    """Process 0 holds the barrier: JAX aborts the others, unless the watch notices the closed connection before."""
    first, (status, error) = trained("kill first")
    assert first[0] == -signal.SIGKILL
    if status == os.EX_TEMPFAIL:
        assert error.endswith(f"error: {describe('UNAVAILABLE', 3)}\n")
    else:
        assert status == -signal.SIGABRT
        assert "Either the leader task was preempted/died/restarted unexpectedly" in error


def test_one_fails(trained):
    """A process that fails prints its traceback, and the other names it."""
    first, second = trained("fail")
    assert first == (os.EX_TEMPFAIL, GONE.format(1, 3))
    assert second[0] == 1 and second[1].endswith("ValueError: a defect\n")


@pytest.mark.parametrize(
    ("what", "status", "line"),
    [pytest.param("all fail", 1, "ValueError: a defect\n", marks=pytest.mark.slow), ("nothing", 0, "")],
)
def test_all_end_alike(trained, what, status, line):
    for left in trained(what):
        assert left[0] == status and left[1].endswith(line), left


def test_who_is_named():
    """The coordination service's errors name each missing process in a line of its own."""
    late = (
        "DEADLINE_EXCEEDED: Barrier timed out.\n# of tasks: 2/4.\nThe first task: 0. Some timed out task names:\n{}\n"
    )
    assert describe(late.format("1"), 25).startswith("process 1 of this run did not answer for 25 s ")
    named = describe(late.format("/job:jax_worker/replica:0/task:2\n/job:jax_worker/replica:0/task:13"), 25)
    assert named.startswith("processes 2, 13 of this run ")
    assert describe("UNAVAILABLE: Socket closed", 25).startswith("a process of this run ")


FIELDS = {"stages": ("seqkd",), "seqkd.steps": 6, "data.heldout": "", "checkpoint.every": 1}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["a step", "a checkpoint", "an export"])
def test_a_killed_process_of_a_run(train_together, tmp_path, moment):
    """The other ends within a minute. The same commands then continue to the exact results of an unharmed run."""
    workdir = tmp_path / "run"
    signs = {
        "a step": lambda: (workdir / "metrics.jsonl").exists() and len(untimed(workdir)) >= 3,
        "a checkpoint": lambda: [*workdir.glob("checkpoints/4.*")],
        "an export": lambda: [*workdir.glob("export/.generator*")],
    }
    killed = []

    def kill(started):
        while not signs[moment]():
            assert [process.poll() for process in started] == [None, None]
            time.sleep(0.001)
        started[1].kill()
        killed.append(time.monotonic())

    first, second = train_together(FIELDS, workdir, devices=1, meanwhile=kill)
    seconds = time.monotonic() - killed[0]
    print(f"\nkilled in {moment}: the other ended after {seconds:.0f} s, status {first.status}: {first.err}")
    assert seconds < MINUTE and second.status == -signal.SIGKILL
    assert (first.status, first.err) == (os.EX_TEMPFAIL, GONE.format(1, PATIENCE))
    for left in train_together(FIELDS, workdir, devices=1):
        assert left.status == 0, left.err
    for left in train_together(FIELDS, tmp_path / "unharmed", devices=1):
        assert left.status == 0, left.err
    weights = "export/generator/model.safetensors"
    assert (workdir / weights).read_bytes() == (tmp_path / "unharmed" / weights).read_bytes()
    assert untimed(workdir) == untimed(tmp_path / "unharmed")
