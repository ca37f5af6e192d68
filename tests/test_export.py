"""python -m gadjax.export: any checkpoint of a run, from its workdir alone."""

from __future__ import annotations

import pathlib
import shutil

import jax
import numpy as np
import pytest

from gadjax.models.model import Model
from gadjax.models.weights import load_params, named_leaves, read_hf_config

pytestmark = pytest.mark.usefixtures("quick_compile")


def weights(directory: pathlib.Path) -> dict:
    config, hf_config = read_hf_config(directory)
    head = "score" if hf_config["architectures"][0].endswith("TokenClassification") else "lm"
    return named_leaves(load_params(directory, config, Model(config, head).abstract_params()))


def files(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_with_the_workdir_alone(command, finished_run, tmp_path):
    """The student's folder is gone. The last step's export is the run's own, to the byte; an earlier one is not."""
    student = pathlib.Path(finished_run.config.student)
    away = student.rename(student.with_name("away"))
    try:
        last = command("gadjax.export", f"--workdir={finished_run.workdir}", f"--out={tmp_path / 'last'}")
        early = command("gadjax.export", f"--workdir={finished_run.workdir}", "--step=2", f"--out={tmp_path / 'early'}")
    finally:
        away.rename(student)
    assert (last.status, early.status) == (0, 0), last.err + early.err
    assert last.out.splitlines() == [f"step 6: {tmp_path / 'last' / name}" for name in ("generator", "discriminator")]
    assert files(tmp_path / "last") == files(finished_run.workdir / "export")
    for network in ("generator", "discriminator"):
        before, after = (weights(tmp_path / name / network) for name in ("early", "last"))
        assert before.keys() == after.keys()
        assert any(np.abs(np.asarray(before[name]) - np.asarray(after[name])).max() > 1e-3 for name in before)


def test_is_the_checkpoints_parameters(command, finished_run, tmp_path):
    from gadjax.checkpoint import Checkpoints
    from gadjax.parallel import mesh as layout

    out = tmp_path / "export"
    assert command("gadjax.export", f"--workdir={finished_run.workdir}", "--step=4", f"--out={out}").status == 0
    config, _ = read_hf_config(out / "discriminator")
    model = Model(config, "score")
    replicated = layout.replicated(layout.make_mesh(1, -1, 1))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), model.abstract_params())
    params = named_leaves(Checkpoints(finished_run.workdir).params(4, "discriminator", like))
    for name, value in weights(out / "discriminator").items():
        np.testing.assert_array_equal(value, params[name], err_msg=name)


def test_a_run_without_discriminator(command, one_device, tiny_config, tmp_path):
    from gadjax.train import run

    run(tiny_config({"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""}), tmp_path / "run")
    done = command("gadjax.export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    assert done.out == f"step 1: {tmp_path / 'out' / 'generator'}\n"
    assert files(tmp_path / "out") == files(tmp_path / "run" / "export")


@pytest.mark.parametrize("step", [0, 7])
def test_unknown_step(command, finished_run, tmp_path, step):
    done = command("gadjax.export", f"--workdir={finished_run.workdir}", f"--step={step}", f"--out={tmp_path / 'x'}")
    assert done.status == 2
    assert done.err == (
        f"error: {finished_run.workdir / 'checkpoints'} has no checkpoint of step {step}; there are: 1, 2, 3, 4, 5, 6\n"
    )
    assert not (tmp_path / "x").exists()


def test_not_a_workdir(command, tmp_path):
    done = command("gadjax.export", f"--workdir={tmp_path}", f"--out={tmp_path / 'x'}")
    assert done.status == 2
    assert done.err == f"error: --workdir {tmp_path} is not the workdir of a run: no config.json\n"
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_yet(command, finished_run, tmp_path):
    for name in ("config.json", "run.json"):
        shutil.copy(finished_run.workdir / name, tmp_path)
    done = command("gadjax.export", f"--workdir={tmp_path}", f"--out={tmp_path / 'x'}")
    assert (done.status, done.err) == (2, f"error: --workdir {tmp_path} has no checkpoint yet\n")


def test_a_place_that_is_taken(command, finished_run, tmp_path):
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "thesis.txt").write_text("mine")
    done = command("gadjax.export", f"--workdir={finished_run.workdir}", f"--out={tmp_path}")
    assert done.status == 2
    assert "generator: exists and is not an export of gadjax; choose another directory" in done.err
    assert (tmp_path / "generator" / "thesis.txt").read_text() == "mine"
