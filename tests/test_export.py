"""python -m gadjax.export writes any checkpoint of a run, and needs the workdir only."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from gadjax.models.model import Model
from gadjax.models.weights import load_params, named_leaves, read_hf_config

pytestmark = pytest.mark.usefixtures("quick_compile", "shared_programs")


def weights(directory: pathlib.Path) -> dict:
    config, hf_config = read_hf_config(directory)
    head = "score" if hf_config["architectures"][0].endswith("TokenClassification") else "lm"
    return named_leaves(load_params(directory, config, Model(config, head).abstract_params()))


def files(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_with_the_workdir_alone(command, finished_run, tmp_path):
    """The student's folder is missing. The export of the last step equals the run's own; an earlier one differs."""
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


def test_a_score_that_is_a_mean_is_exported_as_one(command, finished_run, tmp_path):
    shutil.copytree(finished_run.workdir, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["discriminator"]["pooling"] = "mean"
    file.write_text(json.dumps(config))
    done = command("gadjax.export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    written = [read_hf_config(tmp_path / "out" / name)[1] for name in ("discriminator", "generator")]
    assert [config.get("gadjax_pooling") for config in written] == ["mean", None]


def test_the_card_of_an_earlier_step_knows_no_later_one(command, finished_run, tmp_path):
    """Step 4 is the first of GAD; held-out figures were measured after steps 0, 2, 3, 5 and 6."""
    done = command("gadjax.export", f"--workdir={finished_run.workdir}", "--step=4", f"--out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    for network in ("generator", "discriminator"):
        lines = (tmp_path / "out" / network / "README.md").read_text().splitlines()
        stages = [line.partition(":")[0] for line in lines if line.startswith(("1. ", "2. "))]
        assert stages == ["1. warmup, 3 steps", "2. GAD, 1 step"]
        table = [line for line in lines if line.startswith("| ")]
        assert [line.split(" | ")[0] for line in table[2:]] == ["| before", "| warmup"]
        assert f"| {finished_run.figures['warmup']['nll']:.3f} |" in table[-1]


@pytest.mark.parametrize(
    ("random_init", "init", "of_generator", "of_discriminator"),
    [
        (True, "", "random weights", "random weights"),
        (True, "generator", "random weights", "random weights"),
        (True, "/models/other-1b", "random weights", "`other-1b`"),
        (False, "", "`student-1b`", "`student-1b`"),
        (False, "generator", "`student-1b`", "`student-1b`"),
        (False, "org/other-1b", "`student-1b`", "`org/other-1b`"),
    ],
)
def test_the_cards_name_what_each_network_started_from(
    command, finished_run, tmp_path, random_init, init, of_generator, of_discriminator
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run.workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config |= {"random_init": random_init, "student": "/models/student-1b"}
    config["discriminator"]["init"] = init
    (workdir / "config.json").write_text(json.dumps(config))
    assert command("gadjax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}").status == 0
    for network, start in (("generator", of_generator), ("discriminator", of_discriminator)):
        card = (tmp_path / "out" / network / "README.md").read_text()
        assert f"Started from {start}." in card
        assert ("base_model: org/other-1b" in card) == (start == "`org/other-1b`")


def test_is_the_checkpoints_parameters(command, finished_run, tmp_path):
    from gadjax.parallel import mesh as meshes
    from gadjax.workdir.checkpoints import Checkpoints

    out = tmp_path / "export"
    assert command("gadjax.export", f"--workdir={finished_run.workdir}", "--step=4", f"--out={out}").status == 0
    config, _ = read_hf_config(out / "discriminator")
    model = Model(config, "score")
    replicated = meshes.replicated(meshes.make_mesh(1, -1, 1))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), model.abstract_params())
    params = named_leaves(Checkpoints(finished_run.workdir).params(4, "discriminator", like))
    for name, value in weights(out / "discriminator").items():
        np.testing.assert_array_equal(value, params[name], err_msg=name)


def test_the_cards_lines_run(command, finished_run, tmp_path, monkeypatch):
    """In each export's folder, with transformers. Those of the discriminator print what gadjax.score says."""
    code, printed = {}, []
    for network in ("generator", "discriminator"):
        card = (finished_run.workdir / "export" / network / "README.md").read_text()
        (code[network],) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    monkeypatch.chdir(finished_run.workdir / "export" / "generator")
    exec(code["generator"].replace("256", "8"), {"print": printed.append})
    assert isinstance(printed.pop(), str)
    monkeypatch.chdir(finished_run.workdir / "export" / "discriminator")
    exec(code["discriminator"], {"print": printed.append})

    row = {"prompt": "What is distillation?", "response": "A small model learns from a large one."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    flags = ("--model=.", f"--data={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'scores.jsonl'}", "--dtype=float32")
    assert command("gadjax.score", *flags).status == 0
    assert printed == pytest.approx([json.loads((tmp_path / "scores.jsonl").read_text())["score"]], abs=1e-5)


def test_the_card_knows_the_teacher_and_the_students_licence(command, one_device, tiny_config, small_student, tmp_path):
    """The name that gadjax.collect writes, and what the student's own card says."""
    from gadjax.train import run

    student = shutil.copytree(small_student, tmp_path / "student")
    (student / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/base\n---\n# A student\n")
    data = tmp_path / "answers.parquet"
    table = pq.read_table(tiny_config().data.train)
    pq.write_table(table.append_column("model", pa.array(["gpt-5"] * len(table))), data)
    fields = {"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": "", "data.train": str(data)}
    run(tiny_config(fields | {"student": str(student)}), tmp_path / "run")
    card = ModelCard.load(tmp_path / "run" / "export" / "generator" / "README.md")
    assert "It learned from the answers of `gpt-5` in `answers.parquet`." in card.text
    assert "license" not in card.data.to_dict(), "the weights were random, not the student's"

    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"random_init": False}))
    assert command("gadjax.export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}").status == 0
    card = ModelCard.load(tmp_path / "out" / "generator" / "README.md")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "org/base")


def test_a_run_of_an_earlier_version(command, finished_run, tmp_path):
    """It wrote down neither teacher nor licence."""
    shutil.copytree(finished_run.workdir, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    del facts["teachers"], facts["origins"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    assert command("gadjax.export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}").status == 0
    assert "answers of a teacher in" in (tmp_path / "out" / "generator" / "README.md").read_text()


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
    for name, content in {"config.json": "{}", "run.json": '{"hf_configs": {'}.items():
        (tmp_path / name).write_text(content)
    done = command("gadjax.export", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}")
    assert done.err.startswith(f"error: --workdir {tmp_path}: config.json or run.json is damaged (")


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
