"""Tasks run side by side on shares of the cores; one that fails is named, and the others are done all the same."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from benchmarks.evidence.jobs import Task, in_turn, shares, side_by_side
from gadjax.errors import Stopped, UserError

pytestmark = pytest.mark.quick

# What a process of these tests does, by its task's name; "$" is the folder that all share.
SCRIPTS = {
    "one": "open('$/one', 'w').close()",
    "two": "assert os.path.exists('$/one'); open('$/two', 'w').close()",
    "wrong": "print('first'); sys.exit('error: --that: cannot work')",
    "silent": "os.kill(os.getpid(), 9)",
    "meets-a": "open('$/a', 'w').close(); wait(lambda: os.path.exists('$/b'))",
    "meets-b": "open('$/b', 'w').close(); wait(lambda: os.path.exists('$/a'))",
    "cores": "print(sorted(os.sched_getaffinity(0)))",
    "endless": "open('$/pid', 'w').write(str(os.getpid())); wait(lambda: False)",
}
PRELUDE = """
import os, sys, time
def wait(found):
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.02)
"""


@pytest.fixture
def run(tmp_path):
    """Runs tasks in processes; returns what failed, and the names of those that were done, in their order."""

    def call(tasks: dict[str, tuple[str, ...]], jobs: int, done: tuple[str, ...] = ()) -> tuple[dict, list[str]]:
        ended: list[str] = []
        made = [Task(name, pytest.fail, lambda name=name: name in done, needs) for name, needs in tasks.items()]
        command = lambda name: [sys.executable, "-c", PRELUDE + SCRIPTS[name].replace("$", str(tmp_path))]  # noqa: E731
        failed = side_by_side(made, jobs, command, os.environ, tmp_path / "logs", ended.append)
        return failed, ended

    return call


def test_a_task_waits_for_those_that_it_needs(run):
    assert run({"one": (), "two": ("one",)}, 2) == ({}, ["one", "two"])


def test_what_is_done_is_not_done_again(run, tmp_path):
    assert run({"wrong": (), "one": ("wrong",)}, 2, done=("wrong",)) == ({}, ["wrong", "one"])
    assert not (tmp_path / "logs" / "wrong.log").exists()


def test_tasks_run_at_the_same_time(run):
    """Each of the two ends only when the other has begun. The control: one at a time, nobody comes."""
    failed, ended = run({"meets-a": (), "meets-b": ()}, 2)
    assert not failed and sorted(ended) == ["meets-a", "meets-b"]


def test_a_failure_names_the_task_its_last_words_and_its_log_and_the_others_go_on(run, tmp_path):
    failed, ended = run({"wrong": (), "two": ("wrong",), "silent": (), "one": ()}, 2)
    assert ended == ["one"]
    log = tmp_path / "logs" / "wrong.log"
    assert failed["wrong"] == f"--that: cannot work (status 1; all of its output: {log})"
    assert log.read_text() == "first\nerror: --that: cannot work\n"
    assert failed["two"] == "did not begin, because wrong failed"
    assert failed["silent"].startswith("it printed nothing (status -9;")


def test_cores_are_shared_out():
    assert shares(2, {0, 1, 2, 5}) == [{0, 2}, {1, 5}] and shares(1, {3, 4}) == [{3, 4}]
    assert shares(3, {6, 7}) == [{6}, {7}, {6}]  # more jobs than cores
    assert shares(2, set()) == [frozenset(), frozenset()]  # the system does not say


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no such call")
def test_a_process_has_its_share_of_the_cores(run, tmp_path):
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        pytest.skip("there is one core")
    assert run({"cores": ()}, 2)[0] == {}
    assert (tmp_path / "logs" / "cores.log").read_text() == f"{mine[::2]}\n"


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also where the tests' own process was started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_ends_all_processes(run, tmp_path, number, error):
    pid = tmp_path / "pid"

    def interrupt() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(error):
        run({"endless": ()}, 2)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_in_this_process_a_failure_does_not_stop_the_others_either(capsys):
    def fail(error: Exception) -> None:
        raise error

    ended: list[str] = []
    tasks = [
        Task("bad", lambda: fail(UserError("--that: cannot work")), bool),
        Task("worse", lambda: fail(ZeroDivisionError("by zero")), bool),
        Task("after", lambda: ended.append("must not"), bool, ("bad",)),
        Task("last", lambda: None, bool, ("after",)),
        Task("good", lambda: None, bool),
    ]
    failed = in_turn(tasks, ended.append)
    assert ended == ["good"] and failed["bad"] == "--that: cannot work" and failed["worse"] == "by zero"
    assert failed["after"] == "did not begin, because bad failed"
    assert failed["last"] == "did not begin, because after failed"
    printed = capsys.readouterr().err
    assert "ZeroDivisionError" in printed and "UserError" not in printed  # a defect keeps its traceback
    with pytest.raises(Stopped):
        in_turn([Task("stops", lambda: fail(Stopped("stopped")), bool)], ended.append)


def test_a_result_that_cannot_be_read_is_one_tasks_failure(tmp_path, capsys):
    """Whether a task asks if it is done, or its end is written down: the others run all the same."""

    def unreadable() -> bool:
        raise ValueError("not JSON")

    def ended(name: str) -> None:
        if name == "unwritten":
            raise OSError("no space left")

    tasks = [Task("unread", bool, unreadable), Task("unwritten", bool, lambda: True), Task("good", bool, lambda: True)]
    for done in (side_by_side(tasks, 1, lambda _: [], {}, tmp_path, ended), in_turn(tasks[1:], ended)):
        assert done.pop("unwritten") == "no space left" and "good" not in done
        assert done in ({"unread": "not JSON"}, {})
    assert "ValueError: not JSON" in capsys.readouterr().err
