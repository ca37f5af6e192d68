"""The loop over stages and steps: what continues after an end, wanted or not, is the run that never ended."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import weakref

import jax
import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.metrics import MetricsLogger, SampleLog
from gadjax.setup.prepare import prepare_run
from gadjax.train import run
from gadjax.trainer import loop, stage_start
from gadjax.trainer.loop import TrainingRun
from gadjax.trainer.stage_steps import StageSteps
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.resume import check_workdir
from tests.runs import Gone, stop_before, untimed

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")


def test_an_interrupted_run_is_the_uninterrupted_one(finished_run, tiny_config, rich_fields, tmp_path):
    """With replay, and stops at a stage's first step and within it; steps past a checkpoint are made again."""
    workdir = tmp_path / "run"
    config = tiny_config(rich_fields | {"checkpoint.every": 2})
    assert stop_before(config, workdir, 4) == [2, 3]
    assert untimed(workdir)[-1]["step"] == 4  # logged, but not saved
    assert stop_before(config, workdir, 5) == [2, 3, 5]
    run(config, workdir)
    assert untimed(workdir) == untimed(finished_run.workdir)
    samples = "samples.jsonl"
    assert (workdir / samples).read_bytes() == (finished_run.workdir / samples).read_bytes()
    weights = "export/discriminator/model.safetensors"
    assert (workdir / weights).read_bytes() == (finished_run.workdir / weights).read_bytes()


@pytest.mark.slow  # half a minute: programs of two stages that no other test here has
def test_stopped_in_seqkd_and_at_its_end(tiny_config, tmp_path):
    """Within the stage, and where the next one begins: with other optimizer states, and a discriminator."""
    fields = {"stages": ("seqkd", "warmup"), "seqkd.steps": 3, "warmup.discriminator_only_steps": 0, "data.heldout": ""}
    config, whole, stopped = tiny_config(fields | {"checkpoint.every": 2}), tmp_path / "whole", tmp_path / "stopped"
    run(config, whole)
    assert stop_before(config, stopped, 2) == [2]
    assert stop_before(config, stopped, 3) == [2, 3]
    run(config, stopped)
    assert untimed(stopped) == untimed(whole) and len(untimed(whole)) == 5
    for network in ("generator", "discriminator"):
        weights = f"export/{network}/model.safetensors"
        assert (stopped / weights).read_bytes() == (whole / weights).read_bytes()


def test_checkpoints_that_are_gone(tiny_config, tmp_path):
    """A folder that was not mounted, say: the logs are not emptied. Before the second save none may have been whole."""
    config = tiny_config({"stages": ("seqkd",), "seqkd.steps": 4, "data.heldout": "", "checkpoint.every": 1})
    run(config, tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    refusal = (
        r"metrics\.jsonl tells of 4 steps, but .*checkpoints has no checkpoint: mount its disk, .* or delete metrics"
    )
    before = untimed(tmp_path)
    with pytest.raises(UserError, match=refusal):
        run(config, tmp_path)
    assert untimed(tmp_path) == before and not (tmp_path / "checkpoints").exists()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(UserError, match="tells of 2 steps"):  # exports are made of what is saved
        run(config, tmp_path)
    shutil.rmtree(tmp_path / "export")
    assert check_workdir(prepare_run(config), tmp_path) == []


def test_logs_are_on_disk_before_their_checkpoint(tiny_config, tmp_path, monkeypatch):
    """So that the death of the machine, which spares neither, leaves no checkpoint whose lines are gone."""
    happened = []
    sync, save = os.fsync, Checkpoints.save

    def note_sync(file):
        happened.append(os.readlink(f"/proc/self/fd/{file}").rpartition("/")[2])
        sync(file)

    def note_save(self, step, *rest):
        happened.append((step, len((tmp_path / "metrics.jsonl").read_text().splitlines())))
        return save(self, step, *rest)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Checkpoints, "save", note_save)
    run(tiny_config({"stages": ("seqkd",), "seqkd.steps": 2, "eval_every": 1, "checkpoint.every": 1}), tmp_path)
    for step in (1, 2):
        at = happened.index((step, 1 + 2 * step))  # a measurement before training, and each step with one after it
        assert happened[at - 2 : at] == ["samples.jsonl", "metrics.jsonl"]


def test_stopped_before_the_first_checkpoint(tiny_config, tmp_path):
    config = tiny_config({"stages": ("seqkd",)})
    assert stop_before(config, tmp_path, 1) == []
    assert [line["step"] for line in untimed(tmp_path)] == [0, 1]
    run(config, tmp_path)
    assert [(line["kind"], line["step"]) for line in untimed(tmp_path)] == [
        ("heldout", 0),
        ("train", 1),
        ("train", 2),
        ("heldout", 2),
    ]


def test_more_steps_continue_a_finished_run(tiny_config, tmp_path):
    run(tiny_config({"stages": ("seqkd",), "data.heldout": ""}), tmp_path)
    first = untimed(tmp_path)
    run(tiny_config({"stages": ("seqkd",), "data.heldout": "", "seqkd.steps": 3}), tmp_path)
    assert untimed(tmp_path)[:2] == first
    assert [line["step"] for line in untimed(tmp_path)] == [1, 2, 3]


@pytest.fixture
def continued(finished_run, tmp_path) -> pathlib.Path:
    """A copy of the finished run's workdir."""
    return shutil.copytree(finished_run.workdir, tmp_path / "copy")


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def refused(config, workdir: pathlib.Path, *changes: str) -> str:
    """Each change is shown, and nothing in the workdir is touched; returns the message."""
    before = contents(workdir)
    with pytest.raises(
        UserError, match=r"--workdir .* holds another run \(.*\): use another --workdir, or --force$"
    ) as error:
        run(config, workdir)
    for change in changes:
        assert change in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(workdir) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"seed": 7}, "config.seed: 0 → 7"),
        ({"batch_size": 4}, "config.batch_size: 8 → 4"),
        ({"rollout.num_samples": 3}, "config.rollout.num_samples: 2 → 3"),
        ({"data.heldout": ""}, "held-out rows, usable: 8 → None"),
        ({"data.max_prompt_length": 40}, "config.data.max_prompt_length: 48 → 40"),
        ({"data.max_response_length": 7}, "config.data.max_response_length: 8 → 7"),
        ({"data.cut_answers": "keep"}, "config.data.cut_answers: 'drop' → 'keep'"),
        ({"data.template_args": '{"a": 1}'}, "config.data.template_args: '' → '{\"a\": 1}'"),
        ({"data.template_date": "2025-01-01"}, "config.data.template_date: '2024-07-26' → '2025-01-01'"),
        ({"discriminator.init": "generator"}, "config.discriminator.init: '' → 'generator'"),
        ({"discriminator.replay_size": 32}, "config.discriminator.replay_size: 24 → 32"),
        ({"stages": ("warmup",)}, "config.stages: 'warmup,gad' → 'warmup'"),
        ({"stages": ("seqkd", "warmup", "gad")}, "config.stages: 'warmup,gad' → 'seqkd,warmup,gad'"),
    ],
)
def test_what_makes_another_run_is_refused(continued, tiny_config, rich_fields, fields, change):
    refused(tiny_config(rich_fields | fields), continued, change)


def test_other_data_and_another_template_show_what_follows(continued, tiny_config, rich_fields, heldout_file):
    template = "{# long\n#}" * 40 + "{% for m in messages %}{{ m.content }}{% endfor %}"
    fields = {"data.train": str(heldout_file), "data.chat_template": template}
    changes = "training rows, usable: 24 → 8", "text of the training data: ", "tokenizer and chat template: "
    error = refused(tiny_config(rich_fields | fields), continued, "config.data.chat_template: '' → '{# long", *changes)
    assert "endfor %}'; " in error and len(error) < 1000, "of what is long, the beginning and the end"


def test_a_student_with_weights_is_another_one(continued, tiny_config, rich_fields, student, add_weights, tmp_path):
    other = str(add_weights(shutil.copytree(student, tmp_path / "other")))
    fields = {"student": other, "random_init": False}
    error = refused(tiny_config(rich_fields | fields), continued, "config.random_init: True → False")
    assert f"{student.name}' → '" in error and "/other'; " in error


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_another_model_in_the_same_workdir(
    continued, tiny_config, rich_fields, student, hf_config, add_weights, tmp_path, network
):
    other = shutil.copytree(student, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(hf_config(hidden_size=48)))
    field = {"generator": "student", "discriminator": "discriminator.init"}[network]
    change = f"{network}'s hidden_size: 32 → 48"
    refused(tiny_config(rich_fields | {field: str(add_weights(other))}), continued, f"config.{field}: ", change)


def test_files_that_changed_under_their_names(tiny_config, train_file, write_teacher, tmp_path):
    """As many rows and the same config; one word of an answer is another, or of the template."""
    data, template = tmp_path / "train.parquet", tmp_path / "template.jinja"
    text = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    prompts, answers = [f"What is {n}" for n in range(8)], ["one"] * 8
    fields = {"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": "", "data.train": str(data)}
    config = tiny_config(fields | {"data.chat_template": str(template)})
    write_teacher(data, prompts, answers)
    template.write_text(text)
    run(config, tmp_path / "run")
    template.write_text("user " + text)
    refused(config, tmp_path / "run", "tokenizer and chat template: ")
    template.write_text(text)
    write_teacher(data, prompts, [*answers[:-1], "two"])
    refused(config, tmp_path / "run", "text of the training data: ")
    write_teacher(data, prompts, answers)
    run(config, tmp_path / "run")


def test_what_may_change_does(continued, tiny_config, rich_fields, train_file, student, tmp_path):
    """How long, how fast, how often looked at, how laid out, and where files lie; the next step is made the new way."""
    fields = {
        "data.train": str(shutil.copy(train_file, tmp_path / "moved.parquet")),
        "student": str(shutil.copytree(student, tmp_path / "moved")),
        "gad.steps": 4,
        "warmup.steps": 9,
        "gad.generator_learning_rate": 1e-4,
        "gad.schedule": "linear",
        "gad.rise_steps": 2,
        "gad.kl_coefficient": 0.0,
        "dtype": "bfloat16",
        "remat": "full",
        "micro_batches.generator": 1,
        "eval_every": 0,
        "evaluation.two_sample_folds": 0,
        "checkpoint.every": 5,
        "checkpoint.keep": 3,
        "log.tensorboard": False,
        "export_dtype": "bfloat16",
    }
    before = untimed(continued)
    run(tiny_config(rich_fields | fields), continued)
    after = untimed(continued)
    assert after[: len(before)] == before
    assert [(line["kind"], line["stage"], line["step"]) for line in after[len(before) :]] == [
        ("train", "gad", 7),
        ("heldout", "gad", 7),
    ]
    assert Checkpoints(continued).steps() == [5, 6, 7]
    config = json.loads((continued / "config.json").read_text())
    assert (config["dtype"], config["gad"]["steps"]) == ("bfloat16", 4)


def test_a_workdir_of_an_earlier_version(continued, finished_run, tiny_config, rich_fields):
    """It wrote down less, which is then not compared."""
    facts = json.loads((continued / "run.json").read_text())
    del facts["tokenizer"], facts["contents"]
    (continued / "run.json").write_text(json.dumps(facts))
    assert run(tiny_config(rich_fields), continued) == finished_run.figures


def test_later_stages_continue_a_finished_run(tiny_config, tmp_path):
    fields = {"seqkd.steps": 1, "data.heldout": ""}
    run(tiny_config(fields | {"stages": ("seqkd",)}), tmp_path)
    assert stop_before(tiny_config(fields | {"stages": ("seqkd", "warmup")}), tmp_path, 1) == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_whatever_ends_a_run_closes_it(tiny_config, tmp_path, monkeypatch, error):
    """Logs are closed, also where one of them fails to; a checkpoint that was being written is whole."""
    original, closed = StageSteps.run, []

    def interrupted(self, state, batch, stage_step, done):
        if done == 1:
            raise error("now")
        return original(self, state, batch, stage_step, done)

    def closing(kind, close):
        def record(self):
            closed.append(kind.__name__)
            close(self)
            if kind is MetricsLogger:
                raise OSError("the disk is full")

        return record

    monkeypatch.setattr(StageSteps, "run", interrupted)
    for kind in (MetricsLogger, SampleLog, Checkpoints):
        monkeypatch.setattr(kind, "close", closing(kind, kind.close))
    config = tiny_config({"stages": ("seqkd",), "data.heldout": "", "checkpoint.every": 1})
    with pytest.raises(OSError, match="the disk is full") as raised:
        run(config, tmp_path)
    assert isinstance(raised.value.__context__, error)
    assert {"MetricsLogger", "SampleLog", "Checkpoints"} <= set(closed)
    assert Checkpoints(tmp_path).steps() == [1]


@pytest.mark.parametrize("stages", [("seqkd", "warmup"), ("warmup", "gad")])
def test_a_stage_begins_when_the_old_moments_are_gone(tiny_config, tmp_path, monkeypatch, stages):
    """Else a run needs the memory of both at once, on top of the reference."""
    save, create, moments, alive = TrainingRun._save, stage_start._create, [], []

    def remember(self, figures):
        save(self, figures)
        self.checkpoints.wait()  # on CPUs Orbax writes from the arrays themselves
        networks = [network for network in (self.state.generator, self.state.discriminator) if network is not None]
        leaves = jax.tree.leaves([network.opt_state for network in networks])
        moments.extend(weakref.ref(leaf) for leaf in leaves)

    def count(*args):
        alive.append(sum(ref() is not None for ref in moments))
        return create(*args)

    monkeypatch.setattr(TrainingRun, "_save", remember)
    monkeypatch.setattr(stage_start, "_create", count)
    fields = {"stages": stages, f"{stages[0]}.steps": 1, "warmup.discriminator_only_steps": 0, "data.heldout": ""}
    config = tiny_config(fields)
    stop_before(config, tmp_path, 1)
    assert len(moments) > 10
    assert alive == [0] * (3 if stages[0] == "seqkd" else 4)  # a network of either stage each


def test_discriminator_grows_from_the_student_or_the_generator(tiny_config, tmp_path, monkeypatch):
    """After seqkd, "" still means the student that was given, and "generator" what seqkd made of it."""
    seen = {}

    def remember(setup, base):
        seen[setup.config.discriminator.init] = np.asarray(base["embed"]["embedding"])
        raise Gone

    monkeypatch.setattr(stage_start, "initial_discriminator", remember)
    for init in ("", "generator"):
        fields = {"stages": ("seqkd", "warmup"), "seqkd.steps": 1, "data.heldout": "", "discriminator.init": init}
        with pytest.raises(Gone):
            run(tiny_config(fields), tmp_path / (init or "student"))
    from gadjax.setup.initial import initial_generator
    from gadjax.setup.prepare import prepare_run

    student = initial_generator(prepare_run(tiny_config()))
    np.testing.assert_array_equal(seen[""], student["embed"]["embedding"])
    assert np.abs(seen["generator"] - seen[""]).max() > 1e-3


@pytest.mark.parametrize(("init", "loads"), [("", 2), ("generator", 1), ("a checkpoint", 1)])
def test_the_student_is_loaded_again_only_to_grow_from_it(
    tiny_config, student, add_weights, tmp_path, monkeypatch, init, loads
):
    """After seqkd, whose generator is no longer the student."""
    loaded, original = [], loop.initial_generator
    for module in (loop, stage_start):
        monkeypatch.setattr(module, "initial_generator", lambda setup: loaded.append(setup) or original(setup))
    if init == "a checkpoint":
        init = str(add_weights(shutil.copytree(student, tmp_path / "other")))
    fields = {"stages": ("seqkd", "warmup"), "seqkd.steps": 1, "data.heldout": "", "discriminator.init": init}
    stop_before(tiny_config(fields), tmp_path / "run", 1)
    assert len(loaded) == loads
