"""One process at a time trains in a workdir."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from gadjax.errors import UserError
from gadjax.train import run
from gadjax.workdir.lock import FILE, WorkdirLock

HOLD = """
import sys
from gadjax.workdir.lock import WorkdirLock
import pathlib
with WorkdirLock(pathlib.Path(sys.argv[1])) as lock:
    lock.take()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_end_of_a_process_releases_it(tmp_path, repo):
    """A killed process releases the lock. The refusal names the process that holds it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repo
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        who = f"process {holder.pid} of {socket.gethostname()}"
        refusal = f"^--workdir {tmp_path}: {who} trains there; wait for it to end"
        with pytest.raises(UserError, match=refusal), WorkdirLock(tmp_path) as second:
            second.take()
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with WorkdirLock(tmp_path) as lock:
            lock.take()
            lock.take()
            assert (tmp_path / FILE).read_text() == f"process {os.getpid()} of {socket.gethostname()}\n"


@pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")
def test_a_run_leaves_another_one_alone(tiny_config, tmp_path):
    """A refused run removes nothing, above all no checkpoint that the other run is saving."""
    config = tiny_config({"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""})
    unfinished = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    with WorkdirLock(tmp_path) as first, pytest.raises(UserError, match=f"process {os.getpid()} of .* trains there"):
        first.take()
        run(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", FILE] and unfinished.exists()
    run(config, tmp_path)
    assert not unfinished.exists()


@pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")
def test_two_runs_begin_at_once(tiny_config, tmp_path, monkeypatch):
    """Neither finds the workdir at its start; the second one writes nothing."""
    config = tiny_config({"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""})
    first, workdir = contextlib.ExitStack(), tmp_path / "run"

    def begin(*_):
        workdir.mkdir()
        first.enter_context(WorkdirLock(workdir)).take()

    monkeypatch.setattr("gadjax.trainer.session.check_space", begin)
    with first, pytest.raises(UserError, match="trains there"):
        run(config, workdir)
    assert [path.name for path in workdir.iterdir()] == [FILE]
