"""Whole runs by several processes have the figures of one process, and write each file once."""

from __future__ import annotations

import math
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
import safetensors.numpy

from gadjax.metrics import read_metrics
from gadjax.train import run
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import TIMED

STAGES = ("seqkd", "warmup", "gad")
MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
FIELDS = {
    "stages": STAGES,
    # Adam's first step is the gradient's sign. The scalar head's bias cancels in a pair, so that its sign is rounding.
    "optimizer.eps": 1e-4,
    "discriminator.replay_size": 16,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
    "evaluation.prompts": 5,
}

pytestmark = pytest.mark.usefixtures("quick_compile", "shared_programs")


@pytest.fixture(scope="module")
def fields(small_student):
    """The fields of a run with a student of one layer."""
    return FIELDS | {"student": str(small_student)}


@pytest.fixture(scope="module")
def together(train_together, fields, tmp_path_factory):
    """The workdir of a run by two processes of four devices, and what each process printed."""
    workdir = tmp_path_factory.mktemp("runs") / "together"
    processes = train_together(fields | MESH, workdir)
    for process in processes:
        assert process.status == 0, process.err
    return workdir, processes


def records(workdir: pathlib.Path) -> list[dict]:
    return read_metrics(workdir / "metrics.jsonl")


def assert_same_figures(one: pathlib.Path, other: pathlib.Path, tolerance: float) -> None:
    """Every figure but durations and padding, which depends on the devices."""
    for left, right in zip(records(one), records(other), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            if not name.startswith((*TIMED, "padding")):
                same = value == right[name] or math.isclose(value, right[name], rel_tol=tolerance, abs_tol=tolerance)
                assert same, (left["stage"], left["step"], name, value, right[name])


def assert_same_exports(one: pathlib.Path, other: pathlib.Path, tolerance: float) -> None:
    for network in ("generator", "discriminator"):
        weights = [safetensors.numpy.load_file(run / "export" / network / "model.safetensors") for run in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        for name, value in weights[0].items():
            np.testing.assert_allclose(value, weights[1][name], atol=tolerance, err_msg=name)


def interrupted(workdir: pathlib.Path, to: pathlib.Path, step: int = 6) -> pathlib.Path:
    """A copy of a finished run's workdir without its last step."""
    shutil.copytree(workdir, to)
    shutil.rmtree(to / "checkpoints" / str(step))
    shutil.rmtree(to / "export")
    return to


def test_two_processes_are_one_run(together, tiny_config, fields, tmp_path):
    """One test, so that one worker makes the run once. `test_train` compares one process of eight devices with one."""
    workdir, (first, second) = together
    alone = tmp_path / "alone"
    run(tiny_config(fields | MESH), alone)

    # Every stage has the figures of one process on the same mesh.
    steps = [line["stage"] for line in records(workdir) if line["kind"] == "train"]
    assert steps == [stage for stage in STAGES for _ in range(2)]
    assert_same_figures(workdir, alone, tolerance=1e-5)

    # Process 0 alone writes and prints: everything is there once.
    left = [{path.relative_to(folder) for path in folder.iterdir()} for folder in (workdir, alone)]
    assert left[0] == left[1]
    assert (workdir / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()
    assert_same_exports(workdir, alone, tolerance=1e-4)
    assert "8 cpu (data 2 x fsdp 2 x tensor 2, 2 processes)" in first.out
    for text in ("reading config", "held out:", "SeqKD 0/2", "ROUGE-L", "export"):
        assert text in first.out
        assert text not in second.out, "its own lines are of Gloo's threads, one in another"

    # One process continues what two began.
    continued = interrupted(workdir, tmp_path / "continued")
    run(tiny_config(fields | MESH), continued)
    assert_same_figures(continued, workdir, tolerance=1e-5)
    assert_same_exports(continued, workdir, tolerance=1e-4)


@pytest.mark.slow  # one more run
def test_two_processes_are_one_device(together, tiny_config, fields, one_device_context, tmp_path):
    workdir, _ = together
    with one_device_context():
        run(tiny_config(fields), tmp_path / "one_device")
    assert_same_figures(workdir, tmp_path / "one_device", tolerance=1e-4)


@pytest.mark.slow
def test_two_processes_continue(together, train_together, fields, tmp_path):
    workdir, _ = together
    continued = interrupted(workdir, tmp_path / "continued")
    processes = train_together(fields | MESH, continued)
    assert [process.status for process in processes] == [0, 0], processes[0].err
    assert "after step 5" in processes[0].out
    assert_same_figures(continued, workdir, tolerance=1e-6)
    assert_same_exports(continued, workdir, tolerance=1e-6)


@pytest.mark.slow
def test_fewer_parts_of_a_batch_than_processes(train_together, tiny_config, fields, add_weights, student, tmp_path):
    """The tensor axis spans processes; with all that touches arrays on the way: weights read, the two-sample test,
    a new head, state that waits in host memory, and a rollout with fewer slots than samples.
    """
    weights = str(add_weights(shutil.copytree(student, tmp_path / "weights")))
    fields = fields | {
        "student": weights,
        "discriminator.init": weights,
        "random_init": False,
        "stages": ("warmup", "gad"),
        "evaluation.two_sample_folds": 2,
        "evaluation.two_sample_epochs": 1,
        "offload.optimizer": True,
        "offload.networks": True,
        "rollout.slots": 8,
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 4,
    }
    processes = train_together(fields, tmp_path / "together", processes=4, devices=2)
    assert [process.status for process in processes] == [0] * 4, processes[0].err
    run(tiny_config(fields), tmp_path / "alone")
    assert_same_figures(tmp_path / "together", tmp_path / "alone", tolerance=1e-5)
    assert_same_exports(tmp_path / "together", tmp_path / "alone", tolerance=1e-4)


@pytest.mark.slow
def test_adapters(train_together, tiny_config, fields, add_weights, tmp_path):
    """The base lies on all processes, and exports merge the adapters into the student that process 0 reads."""
    weights = str(add_weights(shutil.copytree(fields["student"], tmp_path / "weights")))
    fields = fields | MESH | {"student": weights, "random_init": False, "stages": ("warmup", "gad"), "lora.rank": 2}
    processes = train_together(fields, tmp_path / "together")
    assert [process.status for process in processes] == [0, 0], processes[0].err
    run(tiny_config(fields), tmp_path / "alone")
    assert_same_figures(tmp_path / "together", tmp_path / "alone", tolerance=1e-5)
    assert_same_exports(tmp_path / "together", tmp_path / "alone", tolerance=1e-4)
    continued = interrupted(tmp_path / "together", tmp_path / "continued", step=4)
    run(tiny_config(fields), continued)
    assert_same_figures(continued, tmp_path / "together", tolerance=1e-5)


@pytest.fixture
def stopped(train_together, fields, tmp_path):
    """The fields of a long run in `tmp_path` that SIGTERM to one process ended, and the step that it was saved at."""
    metrics = tmp_path / "metrics.jsonl"
    few = fields | {"stages": ("seqkd",), "seqkd.steps": 1000, "data.heldout": "", "checkpoint.every": 1}

    def tell(started):
        deadline = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text().count("train") >= 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        started[1].send_signal(signal.SIGTERM)

    processes = train_together(few, tmp_path, devices=1, meanwhile=tell)
    assert [process.status for process in processes] == [75, 75], processes[0].err + processes[1].err
    step = Checkpoints(tmp_path).steps()[-1]
    assert 2 <= step < 1000
    return few, step


def test_sigterm_to_one_stops_all(stopped, tmp_path):
    """After the same step, which is saved, though others were right before."""
    _, step = stopped
    assert records(tmp_path)[-1]["step"] == step


@pytest.mark.slow  # a second run of two processes
def test_those_that_go_on_stop_too_where_one_is_told_before_it_is_ready(stopped, train_together, tmp_path):
    few, step = stopped
    told = tmp_path / "run.json"
    before = told.stat().st_mtime_ns

    def tell_early(started):
        while told.stat().st_mtime_ns == before:  # it is written anew before weights are read
            time.sleep(0.01)
            assert started[0].poll() is None
        started[0].send_signal(signal.SIGTERM)

    processes = train_together(few, tmp_path, devices=1, meanwhile=tell_early)
    assert [process.status for process in processes] == [75, 75], processes[0].err + processes[1].err
    assert step <= Checkpoints(tmp_path).steps()[-1] <= step + 3
