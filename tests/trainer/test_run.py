"""The loop over stages and steps: what continues after an end, wanted or not, is the run that never ended."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

from gadjax.checkpoint import Checkpoints
from gadjax.errors import UserError
from gadjax.metrics import read_metrics
from gadjax.train import run
from gadjax.trainer.loop import figures_that_matter
from gadjax.trainer.stage_steps import StageSteps

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device")


class Stopped(Exception):
    """The machine was taken away."""


@pytest.fixture
def stop_before(monkeypatch):
    """Runs a config until a step, which raises; returns what the workdir's checkpoints are then."""

    def stop(config, workdir: pathlib.Path, step: int) -> list[int]:
        original, saves = StageSteps.run, []

        def limited(self, state, batch, stage_step, done):
            if done == step:
                raise Stopped
            return original(self, state, batch, stage_step, done)

        def save(self, *args):
            saves.append(self)
            return save_original(self, *args)

        save_original = Checkpoints.save
        with monkeypatch.context() as patch:
            patch.setattr(StageSteps, "run", limited)
            patch.setattr(Checkpoints, "save", save)
            with pytest.raises(Stopped):
                run(config, workdir)
        for checkpoints in saves[:1]:
            checkpoints.wait()  # or a checkpoint that is still being written might come and go
        return Checkpoints(workdir).steps()

    return stop


def lines(workdir: pathlib.Path) -> list[dict]:
    records = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("seconds/")} for line in records]


def test_an_interrupted_run_is_the_uninterrupted_one(finished_run, tiny_config, rich_fields, stop_before, tmp_path):
    """With replay, and stops at a stage's first step and within it; steps past a checkpoint are made again."""
    workdir = tmp_path / "run"
    config = tiny_config(rich_fields | {"checkpoint.every": 2})
    assert stop_before(config, workdir, 4) == [2, 3]
    assert lines(workdir)[-1]["step"] == 4  # logged, but not saved
    assert stop_before(config, workdir, 5) == [2, 3, 5]
    run(config, workdir)
    assert lines(workdir) == lines(finished_run.workdir)
    samples = "samples.jsonl"
    assert (workdir / samples).read_bytes() == (finished_run.workdir / samples).read_bytes()
    weights = "export/discriminator/model.safetensors"
    assert (workdir / weights).read_bytes() == (finished_run.workdir / weights).read_bytes()


def test_stopped_before_the_first_checkpoint(tiny_config, stop_before, tmp_path):
    config = tiny_config({"stages": ("seqkd",)})
    assert stop_before(config, tmp_path, 1) == []
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]
    run(config, tmp_path)
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [
        ("heldout", 0),
        ("train", 1),
        ("train", 2),
        ("heldout", 2),
    ]


def test_more_steps_continue_a_finished_run(tiny_config, tmp_path):
    run(tiny_config({"stages": ("seqkd",), "data.heldout": ""}), tmp_path)
    first = lines(tmp_path)
    run(tiny_config({"stages": ("seqkd",), "data.heldout": "", "seqkd.steps": 3}), tmp_path)
    assert lines(tmp_path)[:2] == first
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_other_stages_than_the_checkpoints(finished_run, tiny_config, rich_fields, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished_run.workdir, workdir)
    with pytest.raises(
        UserError, match=r"checkpoint of step 6 is of stage gad, which config.stages .* another --workdir"
    ):
        run(tiny_config(rich_fields | {"stages": ("warmup",)}), workdir)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_another_model_in_the_same_workdir(
    finished_run, tiny_config, rich_fields, student, hf_config, tmp_path, network
):
    """Refused before it touches what a later export of the old run needs."""
    workdir, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(finished_run.workdir, workdir)
    shutil.copytree(student, other)
    (other / "config.json").write_text(json.dumps(hf_config(hidden_size=48)))
    field = {"generator": "student", "discriminator": "discriminator.init"}[network]
    with pytest.raises(UserError, match=f"{workdir} holds a run whose {network} is another model"):
        run(tiny_config(rich_fields | {field: str(other)}), workdir)
    for name in ("config.json", "run.json"):
        assert (workdir / name).read_bytes() == (finished_run.workdir / name).read_bytes()


def test_old_checkpoints_make_room(tiny_config, tmp_path):
    fields = {"stages": ("seqkd",), "seqkd.steps": 4, "data.heldout": "", "checkpoint.every": 1, "checkpoint.keep": 2}
    run(tiny_config(fields), tmp_path)
    assert Checkpoints(tmp_path).steps() == [3, 4]


def test_discriminator_grows_from_the_student_or_the_generator(tiny_config, tmp_path, monkeypatch):
    """After seqkd, "" still means the student that was given, and "generator" what seqkd made of it."""
    from gadjax.trainer import loop

    seen = {}

    def remember(setup, base):
        seen[setup.config.discriminator.init] = np.asarray(base["embed"]["embedding"])
        raise Stopped

    monkeypatch.setattr(loop, "initial_discriminator", remember)
    for init in ("", "generator"):
        fields = {"stages": ("seqkd", "warmup"), "seqkd.steps": 1, "data.heldout": "", "discriminator.init": init}
        with pytest.raises(Stopped):
            run(tiny_config(fields), tmp_path / (init or "student"))
    from gadjax.trainer.setup import initial_generator, prepare_run

    student = initial_generator(prepare_run(tiny_config()))
    np.testing.assert_array_equal(seen[""], student["embed"]["embedding"])
    assert np.abs(seen["generator"] - seen[""]).max() > 1e-3


def test_figures_that_matter():
    metrics = {"generator/loss": np.float32(1.5), "discriminator/accuracy": 0.5, "discriminator/loss": 7.0}
    assert figures_that_matter(metrics) == {"loss": 1.5, "D acc": 0.5}
