"""One process at a time trains in a workdir."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from gadjax.errors import UserError
from gadjax.train import run
from gadjax.trainer.lock import FILE, lock_workdir

HOLD = """
import sys
from gadjax.trainer.lock import lock_workdir
import pathlib
with lock_workdir(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_end_of_a_process_releases_it(tmp_path, repo):
    """However it ends; the message says who it is."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repo
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        who = f"process {holder.pid} of {socket.gethostname()}"
        refusal = f"^--workdir {tmp_path}: {who} trains there; wait for it to end"
        with pytest.raises(UserError, match=refusal), lock_workdir(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with lock_workdir(tmp_path):
        assert (tmp_path / FILE).read_text() == f"process {os.getpid()} of {socket.gethostname()}\n"
    with lock_workdir(tmp_path):
        pass


@pytest.mark.usefixtures("quick_compile", "one_device")
def test_a_run_leaves_another_one_alone(tiny_config, tmp_path):
    """What that is saving, above all."""
    config = tiny_config({"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""})
    unfinished = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    with lock_workdir(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} of .* trains there"):
        run(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", FILE] and unfinished.exists()
    run(config, tmp_path)
    assert not unfinished.exists()


@pytest.mark.usefixtures("quick_compile", "one_device")
def test_a_new_workdir_is_held_too(tiny_config, tmp_path, monkeypatch):
    config = tiny_config({"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""})

    def second(*_):
        with pytest.raises(UserError, match="trains there"), lock_workdir(tmp_path / "run"):
            pass
        raise UserError("seen")

    monkeypatch.setattr("gadjax.trainer.session.Run", second)
    with pytest.raises(UserError, match=r"^seen$"):
        run(config, tmp_path / "run")
    with lock_workdir(tmp_path / "run"):
        pass
