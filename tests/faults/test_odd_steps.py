"""Steps that go wrong: figures that are not finite, a discriminator that sees no difference, answers of one length."""

from __future__ import annotations

import math
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from gadjax.data.tokenizer import load_tokenizer
from gadjax.errors import UserError
from gadjax.metrics import read_metrics
from gadjax.models.model import Model
from gadjax.models.save import save_pretrained
from gadjax.models.weights import read_hf_config
from gadjax.train import run
from gadjax.trainer import stage_steps
from gadjax.trainer.stage_steps import CompiledParts
from gadjax.workdir.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

GAD = {"stages": ("gad",), "gad.kl_coefficient": 0.1, "gad.sft_coefficient": 0.5}  # of all tests: compiled once
GAD |= {f"gad.{network}_learning_rate": 1e-3 for network in ("generator", "discriminator")}


def steps(workdir: pathlib.Path) -> list[dict]:
    return [line for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "train"]


def not_finite(line: dict) -> set[str]:
    return {name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)}


def saved(workdir: pathlib.Path, step: int, network: str) -> dict:
    """What was saved of a network's training."""
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(workdir / "checkpoints" / str(step) / "state")[network]
    return {"params": state["params"], "moments": state["opt_state"]}


@pytest.fixture
def poison(monkeypatch):
    """Puts NaN into the rewards, or into the weights of the discriminator's groups, at some steps of the run."""

    def rewards(steps):
        def update(self, state, groups, baseline, *, train):
            discriminator, judged, metrics = original(self, state, groups, baseline, train=train)
            scores = np.where(self.step in steps, np.float32("nan"), judged.scores)
            return discriminator, judged.replace(scores=scores), metrics

        original = CompiledParts.update_discriminator
        monkeypatch.setattr(CompiledParts, "update_discriminator", update)

    def gradient(steps):
        def pack_groups(*arguments):
            rows, weight = original(*arguments)
            made.append(len(made))
            return rows, np.where(made[-1] in steps, np.float32("nan"), weight)

        original, made = stage_steps.pack_groups, []
        monkeypatch.setattr(stage_steps, "pack_groups", pack_groups)

    return {"generator": rewards, "discriminator": gradient}


@pytest.mark.parametrize("network", ["generator", pytest.param("discriminator", marks=pytest.mark.slow)])
def test_gradients_that_are_not_finite(poison, tiny_config, tmp_path, network):
    """NaN in one step's rewards, or in its pairs: that update changes nothing, is counted, and the run goes on.

    NaN in every step stops it. What was saved before stays.
    """
    poison[network]([1, 3, 4, 5])
    fields = {"gad.steps": 9, "data.heldout": "", "checkpoint.every": 1, "checkpoint.keep": 9}
    fields |= {"optimizer.max_skipped_steps": 2}
    message = (
        rf"the {network}'s gradient was not finite for 2 steps in a row, to step 5 \(config\.optimizer\.max_skipped"
    )
    with pytest.raises(UserError, match=message) as error:
        run(tiny_config(GAD | fields), tmp_path)
    assert f"lower config.gad.{network}_learning_rate" in str(error.value) and "\n" not in str(error.value)
    lines = steps(tmp_path)
    assert [line[f"{network}/skipped"] for line in lines] == [0, 1, 1, 2, 3]
    assert [f"{network}/grad_norm" in not_finite(line) for line in lines] == [False, True, False, True, True]
    assert not any(not_finite(lines[step]) for step in (0, 2))
    first, skipped, good = (saved(tmp_path, step, network) for step in (1, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, first, skipped)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), skipped, good)
    assert max(jax.tree.leaves(moved)) > 1e-4
    other = {"generator": "discriminator", "discriminator": "generator"}[network]
    assert [line[f"{other}/skipped"] for line in lines] == [0] * 5
    assert Checkpoints(tmp_path).steps()[-1] == 4
    assert not (tmp_path / "export").exists()


@pytest.fixture
def collapsed(finished_run, tmp_path) -> str:
    """A discriminator that gives every response the same score."""
    folder = shutil.copytree(finished_run.workdir / "export" / "discriminator", tmp_path / "collapsed")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["score.weight"] *= 0
    tensors["score.bias"] = tensors["score.bias"] * 0 + 0.7
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_collapsed_discriminator(collapsed, tiny_config, tmp_path):
    """Constant scores are advantages of zero: what is left is the gradient of the KL and of cross entropy."""
    run(tiny_config({"stages": ("seqkd",), "seqkd.steps": 1, "data.heldout": ""}), tmp_path / "seqkd")
    fields = {"gad.steps": 3, "gad.train_discriminator": False, "discriminator.init": collapsed, "data.heldout": ""}
    run(tiny_config(GAD | fields), tmp_path / "gad")
    lines = steps(tmp_path / "gad")
    assert [line["discriminator/accuracy"] for line in lines] == [0] * 3
    assert [line["reward/mean"] for line in lines] == pytest.approx([0.7] * 3)
    assert not any(not_finite(line) for line in lines)
    # Of the first step, whose policy is its reference: the KL has no gradient either.
    of_answers = steps(tmp_path / "seqkd")[0]["generator/grad_norm"]
    assert lines[0]["generator/grad_norm"] == pytest.approx(0.5 * of_answers, rel=1e-4)


@pytest.fixture
def stubborn(student, tmp_path):
    """A student with weights, of which one number says how its logit of the end stands out at every position."""

    def write(logit: float) -> str:
        folder = shutil.copytree(student, tmp_path / "stubborn")
        config, hf_config = read_hf_config(folder)
        params = jax.tree.map(np.array, Model(config).init(jax.random.key(0)))
        params["embed"]["embedding"][:, 0] = 1.0  # every hidden state points this way
        ends = list(load_tokenizer(folder).eos_ids)
        params["lm_head"]["embedding"][ends, 0] = logit / np.sqrt(config.hidden_size)
        save_pretrained(tmp_path / "weights", params, config, hf_config, kind="generator")
        shutil.copy(tmp_path / "weights" / "model.safetensors", folder)
        return str(folder)

    return write


@pytest.mark.parametrize(
    ("logit", "length", "cut"),
    [(60.0, 1, 0.0), pytest.param(-60.0, 8, 1.0, marks=pytest.mark.slow)],
    ids=["all empty", "all cut"],
)
def test_answers_of_one_length(stubborn, tiny_config, tmp_path, logit, length, cut):
    """Every answer ends at once, or none ever does: figures are finite, on held-out prompts too."""
    fields = {"student": stubborn(logit), "random_init": False}
    figures = run(tiny_config(GAD | fields), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert not [not_finite(line) for line in lines if not_finite(line)]
    for line in steps(tmp_path / "run"):
        assert (line["response/length_mean"], line["response/truncated"]) == (length, cut)
        assert line["discriminator/skipped"] == line["generator/skipped"] == 0
    assert [values["truncated"] for values in figures.values()] == [cut] * 2


def test_a_collapsed_run_stops(tiny_config, tmp_path):
    fields = {"stages": ("seqkd",), "seqkd.steps": 9, "seqkd.generator_learning_rate": 1e30, "data.heldout": ""}
    with pytest.raises(UserError, match=r"generator's gradient was not finite for 2 steps in a row.* step 3") as error:
        run(tiny_config(fields | {"optimizer.max_skipped_steps": 2}), tmp_path)
    assert "config.optimizer.max_skipped_steps" in str(error.value)
    assert "config.seqkd.generator_learning_rate" in str(error.value)
    assert not (tmp_path / "export").exists()
    lines = steps(tmp_path)
    assert [np.isfinite(line["generator/grad_norm"]) for line in lines] == [True, False, False]
    assert [line["generator/skipped"] for line in lines] == [0, 1, 2]


def test_a_step_of_several_updates_is_skipped_where_all_are(tiny_config, tmp_path):
    """Two updates of the discriminator in each step: the good one of the first step keeps that step out of the row."""
    fields = {"stages": ("warmup",), "warmup.steps": 9, "warmup.discriminator_learning_rate": 1e30}
    fields |= {"discriminator.updates_per_step": 2, "optimizer.max_skipped_steps": 2, "data.heldout": ""}
    with pytest.raises(UserError, match=r"discriminator's gradient was not finite for 2 steps in a row, to step 3 "):
        run(tiny_config(fields), tmp_path)
    lines = steps(tmp_path)
    assert [line["discriminator/skipped"] for line in lines] == [1, 3, 5]
    assert not any(np.isfinite(line["discriminator/grad_norm"]) for line in lines)
