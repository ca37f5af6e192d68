"""Peers' environments, and processes that answer requests."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.harness import peers
from benchmarks.harness.peers import TUNIX, Worker
from gadjax.errors import UserError


def test_peer_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no tunix in .*google-tunix==0.1.7.*-m benchmarks.x --setup, or .*--alone"):
        peers.find_python(TUNIX, tmp_path, "benchmarks.x")


def test_peers_stay_out_of_the_repository(repo):
    with pytest.raises(UserError, match="lies inside the repository"):
        peers.set_up(TUNIX, repo / "somewhere")
    assert not (repo / "somewhere").exists()


def test_what_pip_cannot_install(tmp_path):
    nothing = peers.Peer("none", (f"{tmp_path}/no-such-package",), ())
    with pytest.raises(UserError, match=r"pip could not install .*no-such-package"):
        peers.set_up(nothing, tmp_path / "peers")


def test_worker():
    with Worker("machine") as worker:
        assert worker.call("versions", names=["jax"])["jax"]
        assert worker.call("peak_memory") > 2**26
        assert set(worker.call("layouts", rows=2, inputs=8, outputs=16, count=2)) == {
            "XLA in,out",
            "XLA out,in",
            "numpy in,out",
            "numpy out,in",
        }
        with pytest.raises(RuntimeError, match=r"(?s)machine failed at layouts:.*missing 1 required positional"):
            worker.call("layouts", rows=1, inputs=1, outputs=1)
        assert worker.call("peak_memory") > 2**26  # it goes on
    assert worker._process.returncode == 0


def test_worker_of_another_interpreter_sees_nothing_of_ours(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    worker = Worker("tunix_side", sys.executable)  # which does not have tunix
    with pytest.raises(RuntimeError, match="the process of tunix_side ended at load_sampler with status 1"), worker:
        worker.call("load_sampler")
    assert "PYTHONPATH" not in peers._environment()
