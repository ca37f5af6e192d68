"""Whole runs of a few steps: what a workdir holds, and that the numbers mean what they say."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors

from gadjax.metrics import read_heldout, read_metrics
from gadjax.models import layouts
from gadjax.models.model import Model, cast_params
from gadjax.models.save import save_pretrained
from gadjax.models.weights import load_params, read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.train import run
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import untimed
from tests.test_metric_views import read_texts

pytestmark = pytest.mark.usefixtures("quick_compile", "shared_programs")

DISCRIMINATOR = {"discriminator/loss", "discriminator/accuracy", "discriminator/margin"}
ROLLOUT = {"reward/mean", "reward/std", "response/length_mean", "response/length_p95", "response/truncated", "tokens"}
GENERATOR = {"generator/loss", "generator/grad_norm", "generator/skipped", "generator/entropy"}
POLICY = {"generator/kl", "generator/sampler_gap", "generator/clipped", "reward/length_slope"}
POLICY |= {"generator/policy_loss", "generator/kl_loss"}
HELDOUT = {
    "nll",
    "rouge_l",
    *(f"ngram_f1_{n}" for n in range(1, 6)),
    "length_mean",
    "length_p95",
    "truncated",
    "discriminator_accuracy",
    "discriminator_margin",
}
SAMPLED = {"sampled_length_mean", "sampled_distinct_2", "two_sample", "two_sample_low", "two_sample_high"}


def train_lines(workdir: pathlib.Path) -> list[dict]:
    return [line for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "train"]


def names(line: dict) -> set[str]:
    return set(line) - {"kind", "stage", "step"}


def seconds(*phases: str) -> set[str]:
    """Names of the figures that tell how long the phases took, and how fast that was."""
    speed = {"padding", "speed/trained_tokens_per_second", "speed/model_tflops_per_device"}
    speed |= {"speed/sampled_tokens_per_second"} if "rollout" in phases else set()
    return {f"seconds/{phase}" for phase in (*phases, "compile")} | speed


class TestFinishedRun:
    """Warmup and GAD, with the options of `rich_fields`."""

    def test_workdir(self, finished_run):
        workdir = finished_run.workdir
        assert {path.name for path in workdir.iterdir()} == {
            "run.html",
            "config.json",
            "run.json",
            "tokenizer",
            "metrics.jsonl",
            "samples.jsonl",
            "running.lock",
            "tensorboard",
            "checkpoints",
            "export",
        }
        assert {path.name for path in (workdir / "export").iterdir()} == {"generator", "discriminator"}
        assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["1", "2", "3", "4", "5", "6"]
        assert any((workdir / "tensorboard").iterdir())

    def test_config_is_resolved(self, finished_run, rich_fields):
        config = json.loads((finished_run.workdir / "config.json").read_text())
        assert config["stages"] == ["warmup", "gad"]
        assert config["discriminator"]["replay_size"] == rich_fields["discriminator.replay_size"]
        assert config["gad"]["clip"] == 0.2  # of base.py

    def test_each_step_stands_once(self, finished_run):
        lines = train_lines(finished_run.workdir)
        steps = [(line["step"], line["stage"]) for line in lines]
        assert steps == [(i, "warmup" if i <= 3 else "gad") for i in range(1, 7)]

    def test_metrics(self, finished_run):
        of_discriminator = DISCRIMINATOR | {"discriminator/grad_norm", "discriminator/skipped"} | ROLLOUT
        alone, *lines = train_lines(finished_run.workdir)
        assert names(alone) == of_discriminator | seconds("rollout", "discriminator")
        phases = seconds("rollout", "discriminator", "generator")
        for line in lines:
            policy = POLICY if line["stage"] == "gad" else set()
            assert names(line) == of_discriminator | GENERATOR | policy | phases
            assert all(np.isfinite(line[name]) for name in names(line))
            assert line["response/length_mean"] <= line["response/length_p95"] <= 8
            assert 0 < line["tokens"] <= 8 * 2 * 8
            assert 0 < line["generator/entropy"] <= np.log(320)

    def test_heldout(self, finished_run):
        lines = [line for line in read_metrics(finished_run.workdir / "metrics.jsonl") if line["kind"] == "heldout"]
        when = [(line["step"], line["stage"]) for line in lines]
        assert when == [(0, "before"), (2, "warmup"), (3, "warmup"), (5, "gad"), (6, "gad")]
        for line in lines:
            # At the ends of stages; random weights before them need no test.
            expected = HELDOUT | (SAMPLED if line["step"] in (3, 6) else set())
            assert names(line) == {f"heldout/{name}" for name in expected}
        assert list(finished_run.figures) == ["before", "warmup", "gad"]
        assert finished_run.figures == read_heldout(finished_run.workdir / "metrics.jsonl")

    def test_warmup_learns(self, finished_run):
        assert finished_run.figures["warmup"]["nll"] < finished_run.figures["before"]["nll"] - 0.3

    def test_samples(self, finished_run):
        lines = [json.loads(line) for line in (finished_run.workdir / "samples.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 0, 2, 2, 3, 3, 5, 5, 6, 6]
        assert {line["row"] for line in lines} == {0, 1}
        assert all(set(line) == {"step", "stage", "row", "prompt", "teacher", "student"} for line in lines)
        assert "What is four plus zero" in lines[0]["prompt"]
        assert lines[0]["teacher"] == "four"

    def test_tensorboard_has_texts(self, finished_run):
        texts = read_texts(finished_run.workdir / "tensorboard")
        assert set(texts) == {"config", "stages", "samples/row 0", "samples/row 1"}
        assert [step for step, _ in texts["stages"]] == [1, 4]
        assert [step for step, _ in texts["samples/row 1"]] == [0, 2, 3, 5, 6]
        assert '"stages": [' in texts["config"][0][1]

    def test_export(self, finished_run):
        export = finished_run.workdir / "export"
        for network in ("generator", "discriminator"):
            files = {path.name for path in (export / network).iterdir()}
            assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= files
            card = (export / network / "README.md").read_text()
            assert "training rows, usable: 24" in card
            assert f"{finished_run.figures['gad']['nll']:.3f}" in card
        eos = json.loads((export / "generator" / "generation_config.json").read_text())["eos_token_id"]
        assert eos == [2]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_exports_agree_with_transformers(self, finished_run, command, tmp_path, dtype):
        """Logits of the run's own parameters, rounded as the export rounds them: to 1e-4.

        bfloat16 is the default. Against the float32 parameters its 8 bits move a logit by less than 3 % of the largest.
        """
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        torch.set_num_threads(1)
        workdir = shutil.copytree(finished_run.workdir, tmp_path / "run")
        config = json.loads((workdir / "config.json").read_text())
        (workdir / "config.json").write_text(json.dumps(config | {"export_dtype": dtype}))
        assert command("gadjax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}").status == 0
        tokens = np.random.default_rng(0).integers(0, 320, (2, 17)).astype(np.int32)
        fields = tokens, np.broadcast_to(np.arange(17), tokens.shape), np.ones_like(tokens)
        final = final_params(finished_run)
        for network, auto, head in (
            ("generator", transformers.AutoModelForCausalLM, "lm"),
            ("discriminator", transformers.AutoModelForTokenClassification, "score"),
        ):
            path = tmp_path / "out" / network
            assert json.loads((path / "config.json").read_text())["dtype"] == dtype
            with safetensors.safe_open(path / "model.safetensors", framework="numpy") as file:
                stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
            assert stored == {{"float32": "F32", "bfloat16": "BF16"}[dtype]}
            model = Model(read_hf_config(path)[0], head)
            ours = model.logits if head == "lm" else model.scores
            rounded = cast_params(cast_params(final[network], dtype), "float32")
            theirs = auto.from_pretrained(path, dtype=torch.float32).eval()
            with torch.no_grad():
                logits = theirs(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
            np.testing.assert_allclose(np.asarray(ours(rounded, *fields)).reshape(logits.shape), logits, atol=1e-4)
            unrounded = np.asarray(ours(final[network], *fields)).reshape(logits.shape)
            np.testing.assert_allclose(
                unrounded, logits, atol=1e-4 if dtype == "float32" else 0.03 * np.abs(logits).max()
            )

    def test_same_seed_same_figures(self, finished_run, tiny_config, rich_fields, one_device, tmp_path):
        again = tmp_path / "again"
        run(tiny_config(rich_fields), again)
        assert untimed(again) == untimed(finished_run.workdir)
        name = "samples.jsonl"
        assert (again / name).read_bytes() == (finished_run.workdir / name).read_bytes()
        assert exports(again) == exports(finished_run.workdir)

    def test_a_finished_run_only_exports(self, finished_run, one_device, tmp_path, monkeypatch, capsys):
        from gadjax.trainer.stage_steps import StageSteps

        workdir = tmp_path / "copy"
        shutil.copytree(finished_run.workdir, workdir)
        shutil.rmtree(workdir / "export")
        monkeypatch.setattr(StageSteps, "run", None)
        metrics = (workdir / "metrics.jsonl").read_bytes()
        assert run(finished_run.config, workdir) == finished_run.figures
        assert (workdir / "metrics.jsonl").read_bytes() == metrics
        assert exports(workdir) == exports(finished_run.workdir)
        out = capsys.readouterr().out
        assert f"continuing {workdir} after step 6" in out
        for what in ("warmup", "GAD", "NLL", "ROUGE-L", "metrics.jsonl", str(workdir / "export" / "generator")):
            assert what in out


def final_params(finished_run) -> dict:
    """Of the last checkpoint, which is not an export."""
    mesh = meshes.make_mesh(1, 1, 1, jax.devices()[:1])
    params = {}
    for network, head in (("generator", "lm"), ("discriminator", "score")):
        config, _ = read_hf_config(pathlib.Path(finished_run.config.student))
        model = Model(config, head)
        like = layouts.abstract_params(model, mesh)
        params[network] = Checkpoints(finished_run.workdir).params(6, network, like)
    return params


def exports(workdir: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in (workdir / "export").rglob("*") if path.is_file())
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def seqkd_run(tiny_config, one_device, quick_compile, shared_programs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("seqkd")
    config = tiny_config({"stages": ("seqkd",), "seqkd.steps": 3})
    assert list(run(config, workdir)) == ["before", "seqkd"]
    return workdir


class TestSeqKD:
    def test_no_discriminator(self, seqkd_run):
        workdir = seqkd_run
        assert [path.name for path in (workdir / "export").iterdir()] == ["generator"]
        for line in train_lines(workdir):
            assert names(line) == GENERATOR | {"tokens"} | seconds("generator")
        for figures in read_heldout(workdir / "metrics.jsonl").values():
            assert not any(name.startswith("discriminator") for name in figures)

    def test_tokens_are_the_teachers(self, seqkd_run, tiny_config):
        """An epoch is 24 rows in 3 steps: every answer once, whatever their order."""
        from gadjax.setup.prepare import prepare_run

        answers = prepare_run(tiny_config()).train.answers
        assert sum(line["tokens"] for line in train_lines(seqkd_run)) == sum(answers.lengths)

    def test_facts(self, seqkd_run):
        facts = json.loads((seqkd_run / "run.json").read_text())
        assert facts["data"]["training rows, usable"] == 24
        assert facts["data"]["held-out rows, usable"] == 8
        assert facts["stages"] == {"seqkd": 3}


def test_ablations(tiny_config, one_device, student, hf_config, tmp_path, monkeypatch):
    """A discriminator of another size, with CE, learned on the frozen student and fixed in GAD; more options."""
    other = tmp_path / "other"
    shutil.copytree(student, other)
    fields = hf_config(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1, head_dim=16)
    (other / "config.json").write_text(json.dumps(fields))
    config, raw = read_hf_config(other)
    save_pretrained(tmp_path / "big", Model(config).init(jax.random.key(1)), config, raw, kind="generator")
    shutil.copytree(tmp_path / "big", other, dirs_exist_ok=True)
    workdir = tmp_path / "run"
    run(
        tiny_config(
            {
                "discriminator.init": str(other),
                "discriminator.loss": "ce",
                "warmup.train_generator": False,
                "gad.train_discriminator": False,
                "gad.aggregation": "constant",
                "gad.sft_coefficient": 0.5,
                "gad.importance_cap": 2.0,
                "gad.entropy_coefficient": 0.01,
                "data.heldout": "",
            }
        ),
        workdir,
    )
    *warmup, first, last = train_lines(workdir)
    assert all("generator/loss" not in line and "discriminator/grad_norm" in line for line in warmup)
    assert all("generator/loss" in line and "discriminator/grad_norm" not in line for line in (first, last))
    assert first["generator/kl"] == 0
    trained = load_params(other, config, Model(config).abstract_params())
    exported_config, _ = read_hf_config(workdir / "export" / "discriminator")
    assert exported_config == config
    final = load_params(workdir / "export" / "discriminator", config, Model(config, "score").abstract_params())
    moved = np.abs(np.asarray(final["embed"]["embedding"]) - np.asarray(trained["embed"]["embedding"])).max()
    assert 0 < moved < 0.1  # two updates at 1e-2 from the checkpoint it was given


def test_first_step_of_gad(tiny_config, one_device, tmp_path):
    """Before its first update the policy is the reference, which warmup left, and the sampler's log-probs are its own.

    float32, where both hold: the KL exactly, the log-probs to rounding. One update a rollout, so that it is the first.
    """
    run(tiny_config({"micro_batches.generator": 2, "gad.generator_learning_rate": 1e-3, "data.heldout": ""}), tmp_path)
    *_, first, last = train_lines(tmp_path)
    assert (first["stage"], first["step"], last["step"]) == ("gad", 3, 4)
    assert first["generator/kl"] == 0 < last["generator/kl"]
    assert 0 < first["generator/sampler_gap"] < 1e-4
    assert 0 < last["generator/sampler_gap"] < 1e-4, "every rollout is of the parameters that learn from it"
    assert first["generator/clipped"] == last["generator/clipped"] == 0


@pytest.mark.slow
def test_a_run_in_bfloat16(tiny_config, one_device, tmp_path):
    """Sampling, all updates and the reference compute in bfloat16; weights, moments and scores stay float32.

    Its 8 bits leave less than 1 % in a log-prob of some nats: the bound here of the sampler's distance to the trainer.
    The reference is the generator rounded, so the first step's KL is of rounding errors squared.
    """
    figures = run(tiny_config({"dtype": "bfloat16", "micro_batches.generator": 2}), tmp_path)
    lines = train_lines(tmp_path)
    assert [line["stage"] for line in lines] == ["warmup", "warmup", "gad", "gad"]
    assert all(np.isfinite(line[name]) for line in lines for name in names(line))
    assert lines[2]["generator/kl"] < 1e-3 and 1e-5 < lines[2]["generator/sampler_gap"] < 0.03
    assert all(line.get("generator/skipped", 0) == line["discriminator/skipped"] == 0 for line in lines)
    assert figures["warmup"]["nll"] < figures["before"]["nll"]
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(tmp_path / "checkpoints" / "4" / "state")
    dtypes = {name: {str(leaf.dtype) for leaf in jax.tree.leaves(part)} for name, part in state.items()}
    assert dtypes == {
        "generator": {"float32", "int32"},
        "discriminator": {"float32", "int32"},
        "reference": {"bfloat16"},
    }


def test_all_devices_compute_the_same(finished_run, seqkd_run, all_devices, tiny_config, rich_fields, tmp_path):
    """The first step on a mesh of 4 x 2 devices; rounding aside, it is that of one device.

    Without micro-batches, which change nothing but memory. The first batch of a warmup is that of a SeqKD run.
    """
    fields = {"stages": ("warmup",), "warmup.steps": 1, "warmup.discriminator_only_steps": 0, "data.heldout": ""}
    fields |= {"micro_batches.generator": 1, "micro_batches.discriminator": 1, "evaluation.two_sample_folds": 0}
    assert jax.device_count() == 8
    run(tiny_config(rich_fields | fields | {"mesh.fsdp": 4, "mesh.tensor": 2}), tmp_path)
    (sharded,) = train_lines(tmp_path)
    single = train_lines(seqkd_run)[0] | train_lines(finished_run.workdir)[0]
    assert names(sharded) - names(single) == set()
    for name in names(sharded) - seconds("rollout", "discriminator", "generator"):
        assert sharded[name] == pytest.approx(single[name], rel=1e-4, abs=1e-5), name
