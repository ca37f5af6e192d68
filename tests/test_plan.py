"""The command's output, exit status and errors, and a plan for TPUs that are not here."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import pytest

import gadjax
from gadjax.errors import UserError
from tests.support.environment import quick_environment

REPO = pathlib.Path(__file__).parents[1]
V6E = ("--config.micro_batches.tokens=10752",)  # of its 31 GiB
TINY = (
    "--config.data.max_prompt_length=24",
    "--config.data.max_response_length=8",
    "--config.batch_size=16",
    "--config.rollout.num_samples=2",
    "--config.rollout.slots=16",
    "--config.micro_batches.tokens=64",
    "--config.logprob_chunk=16",
    "--config.evaluation.two_sample_folds=2",
)
# A run that measures nothing has fewer programs to compile.
NO_HELDOUT = "--config.data.train=unnamed"


def plan(*arguments, timeout=400):
    """Runs the command in a process of its own, because it sets JAX's platform before JAX is imported."""
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    if any(argument.startswith("--topology=cpu") for argument in arguments):
        clean |= quick_environment()
    command = [sys.executable, "-m", "gadjax.plan", *arguments]
    return subprocess.run(command, cwd=REPO, env=clean, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """Plans of this module are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny_plan(small_student):
    arguments = ("--config=configs/base.py", f"--config.student={small_student}", *TINY, "--topology=cpu:8")
    return plan(*arguments, "--config.stages=seqkd,warmup,gad", "--json"), arguments


def test_every_program_is_there(tiny_plan):
    finished, _ = tiny_plan
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    names = ["weights for sampling", "rollout", "discriminator update", "cross-entropy update", "reference"]
    names += ["policy update"] + [f"held-out {name}" for name in ("likelihoods", "weights for sampling", "answers")]
    names += ["held-out scores"] + [f"two-sample {name}" for name in ("answers", "update", "scores")]
    assert [program["name"] for program in found["programs"]] == names
    assert found["fits"] and found["devices"] == 8 and found["slots"] == 16
    assert found["compiled_before"] == 0
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    for program in found["programs"]:
        compiled = program["compiled"]
        assert program["peak"] == compiled["program"] + program["resident"] + found["reserve"] > 0
        assert compiled["moved"] > 0 and len(compiled["largest"]) == 5
        assert (compiled["flops"] > 0) == (not program["name"].endswith("weights for sampling"))
        assert program["name"].startswith(("held-out", "two-sample")) == (not program["stages"])
        assert program["bound"] == max(compiled["seconds"].values())
    for stage in ("seqkd", "warmup", "gad"):
        parts = [program["bound"] for program in found["programs"] if stage in program["stages"]]
        assert found["step_seconds"][stage] == pytest.approx(sum(parts))


def test_the_table_for_people(tiny_plan):
    _, arguments = tiny_plan
    told = plan(*arguments, "--config.stages=seqkd", NO_HELDOUT)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("fits: the most is") and "cpu:8: 8 devices of" in told.stdout
    assert "a step at least: seqkd " in told.stdout and "assumed:" in told.stdout
    assert "--rows=N, the usable rows of data.train, gives the length of seqkd" in told.stdout
    assert " 0 TFLOP/s" not in told.stdout
    whole = plan(*arguments, "--config.stages=seqkd", NO_HELDOUT, "--rows=1000000", "--price=3600", "--details")
    assert "the run, by these steps: " in whole.stdout and "cost, by these hours: " in whole.stdout
    assert whole.stderr == "1 of 1 programs were compiled before\n"
    assert "GB moved" in whole.stdout and "\\" not in whole.stdout
    assert told.stderr == "compiling: cross-entropy update\n"
    assert "not in those seconds: nothing; config.data.heldout names no held-out prompts" in told.stdout


def test_what_does_not_fit_is_status_1():
    """A 14B model on one virtual device needs more than this machine's memory."""
    lengths = ("--config.data.max_prompt_length=64", "--config.data.max_response_length=64", "--config.batch_size=4")
    told = plan("--config=configs/qwen14b.py", "--config.stages=seqkd", "--topology=cpu:1", *lengths, NO_HELDOUT)
    assert told.returncode == 1, told.stderr
    assert "does not fit: the cross-entropy update needs" in told.stdout
    assert "config.offload.optimizer=True" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=configs/qwen3b.py",), "no topology: give --topology="),
        (("--config=configs/qwen3b.py", "--topology=v7:8"), "--topology=v7:8 is not known"),
        (("--topology=cpu:8",), "no config: give --config="),
    ],
)
def test_errors_are_one_line(command, repo, monkeypatch, arguments, message):
    monkeypatch.chdir(repo)
    with mock.patch.dict(os.environ):  # it sets what JAX reads
        told = command("gadjax.plan", *arguments)
    assert told.status == 2
    assert message in told.err and "Traceback" not in told.err and told.out == ""


def test_an_error_of_the_devices_is_one_line():
    told = plan("--config=configs/qwen3b.py", "--topology=cpu:3")
    assert told.returncode == 2
    assert "config.mesh.fsdp 3 does not divide: use one of 1" in told.stderr
    assert "Traceback" not in told.stderr and told.stdout == ""


def test_in_python_too_an_error_is_one_line():
    """Checked in this process where it can be; the other process's line is raised too."""
    with pytest.raises(UserError, match=r"--topology=v7:8 is not known"):
        gadjax.plan("demo", "v7:8")
    config = gadjax.load_config("demo")
    config.batch_size = 0
    with pytest.raises(UserError, match=r"^config\.batch_size is 0: it must be at least 1$"):
        gadjax.plan(config, "cpu:1")


@pytest.mark.slow
def test_a_suggestion_fits_and_is_no_slower(tiny_plan):
    """The search starts from fewer slots and smaller micro-batches than would fit."""
    finished, arguments = tiny_plan
    told = plan(*arguments, "--config.stages=gad", "--suggest", "--json", NO_HELDOUT)
    assert told.returncode == 0, told.stderr
    found, before = json.loads(told.stdout), json.loads(finished.stdout)
    assert found["fits"] and found["suggested"]
    assert found["step_seconds"]["gad"] < before["step_seconds"]["gad"]


@pytest.mark.slow
def test_three_billion_parameters_on_four_tpus():
    """At the paper's shapes and full depth; a warmup whose discriminator only scores has the fewest programs."""
    pytest.importorskip("libtpu", reason="pip install 'gadjax[plan]'")
    # Nine sequences of each of four prompts fill the rows of four devices: no padding.
    fields = ("stages=warmup", "warmup.train_discriminator=False", "micro_batches.discriminator=64")
    stage = [f"--config.{field}" for field in fields]
    told = plan("--config=configs/qwen3b.py", "--topology=v6e:2x2", *stage, *V6E, NO_HELDOUT, "--json")
    assert told.returncode == 0, told.stderr[-3000:]
    found = json.loads(told.stdout)
    assert found["fits"] and max(program["peak"] for program in found["programs"]) < 0.9 * found["memory"]
    programs = {program["name"]: program["compiled"] for program in found["programs"]}
    check_token_loop(programs["rollout"])
    assert 0 < programs["cross-entropy update"]["positions"] <= 1024
    # Two operations a parameter and token forward, six with the gradient; attention and the head come on top.
    layers, length = 2_774_773_760, 3584  # parameters without the token table
    update = programs["cross-entropy update"]["flops_without_remat"] / (6 * layers * 256 * length)
    rewards = programs["rewards"]["flops_without_remat"] / (2 * layers * 256 * 9 * length)
    assert 1.0 < rewards < 1.15 and 1.0 < update < 1.2


def check_token_loop(rollout):
    """No weight is gathered: a collective is smaller than half of the smallest kernel, 2048 x 2 x 128."""
    sums = [traffic for traffic in rollout["collectives"] if traffic["in_token_loop"]]
    assert sums and rollout["gathered"] < 2048 * 2 * 128 * 2 // 2
    assert max(traffic["bytes"] for traffic in sums) < 2048 * 2 * 128 * 2 // 2


@pytest.mark.slow
@pytest.mark.parametrize(("config", "topology"), [("qwen14b", "v5p:2x4x4")])
def test_whole_runs_fit_tpus(config, topology):
    """Plans of the paper's runs, with the programs that a quick plan leaves out."""
    pytest.importorskip("libtpu", reason="pip install 'gadjax[plan]'")
    memory = V6E if topology.startswith("v6e") else ()
    told = plan(f"--config=configs/{config}.py", f"--topology={topology}", *memory, "--json", timeout=3600)
    assert told.returncode == 0, told.stderr[-3000:]
    found = json.loads(told.stdout)
    assert max(program["peak"] for program in found["programs"]) < 0.9 * found["memory"]
