"""Every benchmark runs at tiny sizes."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.growth import growth
from benchmarks.harness import models, peers
from benchmarks.harness.parts import PARTS
from benchmarks.sampling_tunix import agreement
from benchmarks.update import CHECKED, disagreement
from tests.support.environment import quick_environment


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory):
    """Where the first benchmark that needs a model writes it."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def benchmark(command, monkeypatch, tmp_path, models_folder):
    """Runs `python -m benchmarks.NAME --quick`, and returns its result and its JSON."""
    monkeypatch.setattr(models, "FOLDER", models_folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torch's threads spin as they wait for each other

    def run(name, *arguments):
        out = tmp_path / "out.json"
        finished = command(f"benchmarks.{name}", "--quick", f"--out={out}", *arguments)
        return finished, json.loads(out.read_text())["results"] if out.exists() else None

    return run


@pytest.fixture
def quick_workers(monkeypatch):
    """Workers compile as `quick_compile` does."""
    environment = peers._environment
    monkeypatch.setattr(peers, "_environment", lambda: environment() | quick_environment())


def test_machine(benchmark):
    finished, results = benchmark("machine")
    assert finished.status == 0 and "GFLOP/s" in finished.out
    assert results["peak"]["low"] > 0 and results["bandwidth"]["low"] > 0
    assert results["rates"].keys() == {"1", "16"}


@pytest.mark.slow  # compiles with all optimizations, whose loops it reads
def test_sampling_parts(benchmark):
    finished, results = benchmark("sampling_parts", "--rounds=1")
    assert finished.status == 0, finished.err
    (turn,) = results[0]["turns"]
    assert turn["parts"].keys() == set(PARTS) and min(turn["parts"].values()) > 0  # each was found in the program
    assert sum(turn["parts"].values()) == pytest.approx(turn["seconds"])
    assert set(turn["least"]) < set(PARTS) and min(turn["least"].values()) > 0


@pytest.mark.slow
def test_gpu_decode(benchmark):
    finished, results = benchmark("gpu_decode", "--rounds=1")
    assert finished.status == 0, finished.err
    assert 0 < results["attention"][0]["error"] < 5e-3  # the kernel's bfloat16, against float32
    assert 0 < results["rollouts"][0]["gap"] < 5e-3
    assert "loop / kernel" in finished.out


@pytest.mark.slow
def test_sampling_beside_transformers(benchmark):
    pytest.importorskip("torch")
    finished, results = benchmark("sampling", f"--peer_python={sys.executable}", "--rounds=1")
    assert finished.status == 0, finished.err
    cases = {case["case"]: case for case in results["cases"]}
    assert cases.keys() == {"fixed, 1", "fixed, 2", "skewed, 2"}
    skewed = cases["skewed, 2"]
    assert skewed["rows"] == 16 and skewed["eos_ids"] > 0 and skewed["median_length"] < 6
    assert skewed["rows_of_other_length"] == 0
    for turns in (case["turns"] for case in cases.values()):
        assert turns.keys() == {"gadjax", "machine", "dynamic", "static"}
        assert len({turn[0]["tokens"] for turn in turns.values()}) == 1  # the same on all sides
    assert "gadjax / HF" in finished.out


@pytest.mark.slow  # half a minute; `parity/test_torch_gad.py` compares the same updates with torch
@pytest.mark.usefixtures("quick_workers")
def test_updates_beside_torch(benchmark):
    pytest.importorskip("torch")
    finished, results = benchmark("update", f"--peer_python={sys.executable}", "--rounds=1")
    assert finished.status == 0, finished.err
    (case,) = results["cases"]
    assert case["first_metrics"]["torch"]["generator/kl"] > 1e-6  # the reference is another policy
    assert max(case["disagreement"].values()) < 1e-4
    assert case["ratio"]["low"] > 0


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("name", ["sampling_tunix", "step_tunix"])
def test_alone(benchmark, name):
    finished, results = benchmark(name, "--alone", "--rounds=1")
    assert finished.status == 0, finished.err
    assert "gadjax" in finished.out and "–" in finished.out
    assert results


@pytest.mark.slow
def test_growth(benchmark):
    finished, results = benchmark("growth", "--rounds=1")
    assert finished.status == 0, finished.err
    quantities = results["batch"]["quantities"]
    assert {"rollout, seconds", "rollout, bytes", "policy update, bytes"} <= quantities.keys()
    assert all(quantity["values"][0] > 0 for quantity in quantities.values())


@pytest.mark.slow
def test_checkpoints(benchmark, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    finished, results = benchmark("checkpoints", f"--folder={disk}")
    assert finished.status == 0, finished.err
    assert results["every"] == 2 and results["bytes"] > 100_000
    assert all(0 < turn["waiting"] < turn["seconds"] for turn in results["turns"]["saving"])
    assert all(turn["waiting"] == turn["bytes"] == 0 for turn in results["turns"]["not saving"])
    assert "slower at 100" in finished.out
    assert not list(disk.iterdir())


@pytest.mark.parametrize("name", ["sampling", "update", "sampling_tunix", "step_tunix"])
def test_without_the_peer(benchmark, tmp_path, name):
    finished, results = benchmark(name, f"--peers={tmp_path}")
    assert finished.status == 2 and results is None
    assert finished.err.count("\n") == 1 and f"python -m benchmarks.{name} --setup" in finished.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds=0"], "--rounds=0: at least 1"),
        (["--peer_python=/no/such/python"], "--peer_python=/no/such/python: there is no such interpreter"),
        (["--alone", "--lengths=long"], "--lengths=long: 'long' is neither fixed nor skewed"),
    ],
)
def test_bad_arguments(benchmark, arguments, message):
    finished, _ = benchmark("sampling", *arguments)
    assert finished.status == 2 and finished.err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--every=0", "at least 1"), ("--folder=/no/such", "no such folder; make it, or name another one")],
)
def test_bad_arguments_of_checkpoints(benchmark, argument, message):
    finished, _ = benchmark("checkpoints", argument)
    assert finished.status == 2 and finished.err == f"error: {argument}: {message}\n"


def test_other_computations_are_no_comparison():
    ours = dict.fromkeys(CHECKED, 1.0)
    assert max(disagreement(ours, dict(ours)).values()) == 0
    for name in CHECKED:
        with pytest.raises(RuntimeError, match=name):
            disagreement(ours | {name: 1.01}, ours)
    with pytest.raises(RuntimeError, match="generator/kl"):
        disagreement(ours | {"generator/kl": float("nan")}, ours)


def test_growth_is_judged_by_the_fit_and_by_the_last_doubling():
    linear, square = [[1.0, 2.0, 4.0]], [[1.0, 4.0, 16.0]]
    judge = lambda rounds, allowed=1.0: growth([1, 2, 4], rounds, allowed, 0.1)["ok"]  # noqa: E731
    assert judge(linear) and judge(square, 2.0)
    assert not judge(square)
    assert not judge([[1.0, 1.2, 2.9]])  # sublinear on the whole, but not where it is large


def test_agreement():
    assert agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.75
