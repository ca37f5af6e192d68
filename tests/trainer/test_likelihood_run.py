"""Runs with a likelihood discriminator, and stage soda, from their configs to their exports."""

from __future__ import annotations

import json
import shutil

import pytest

from gadjax.errors import UserError
from gadjax.rollout.chat_model import load_network
from gadjax.setup.prepare import prepare_run
from gadjax.train import run
from gadjax.trainer.watchdog_rules import RULES
from gadjax.workdir.resume import check_workdir
from tests.runs import assert_same_run, stop_before, untimed

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

FIELDS = {
    "stages": ("seqkd", "warmup", "gad"),
    "discriminator.kind": "likelihood",
    "discriminator.init": "generator",
    "discriminator.baseline": "reference",
    "discriminator.sft_coefficient": 0.5,
    "discriminator.replay_size": 16,
    "seqkd.train_discriminator": True,
    "seqkd.discriminator_learning_rate": 1e-3,
    "gad.credit": "token",
    "gad.discount": 0.5,
    "gad.whitening": "running",
    "gad.reward_clip": 2.0,
    "gad.demonstrations": 0.5,
    "gad.demonstration_steps": 4,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
}


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory, one_device, quick_compile, shared_programs):
    workdir = tmp_path_factory.mktemp("likelihood") / "run"
    return workdir, run(tiny_config(FIELDS), workdir)


def test_all_stages_train_both_networks(finished):
    workdir, figures = finished
    rows = [row for row in untimed(workdir) if row["kind"] == "train"]
    assert [row["stage"] for row in rows] == ["seqkd", "seqkd", "warmup", "warmup", "gad", "gad"]
    assert rows[1]["discriminator/nll"] < rows[0]["discriminator/nll"], "SeqKD teaches the discriminator"
    assert all(row["discriminator/nll"] > 0 and "reward/length_slope" in row for row in rows if row["stage"] == "gad")
    assert {"discriminator_accuracy", "discriminator_margin"} <= figures["gad"].keys()


def test_an_interrupted_run_is_the_uninterrupted_one(finished, tiny_config, tmp_path):
    """Stopped in each stage, with statistics of the rewards, replayed groups and an annealed share."""
    workdir, _ = finished
    for step in (1, 3, 5):
        stop_before(tiny_config(FIELDS), tmp_path / "run", step)
    run(tiny_config(FIELDS), tmp_path / "run")
    assert_same_run(tmp_path / "run", workdir)


def test_the_discriminator_is_exported_as_a_language_model(finished):
    workdir, _ = finished
    export = workdir / "export" / "discriminator"
    config = json.loads((export / "config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM") and "num_labels" not in config
    assert (export / "generation_config.json").exists()
    assert load_network(str(export), "lm").model.head == "lm"
    assert "log φ" in (export / "README.md").read_text()


def test_a_frozen_one_comes_from_an_export_and_gives_rewards(finished, tiny_config, tmp_path):
    workdir, _ = finished
    fields = {
        "stages": ("gad",),
        "discriminator.kind": "likelihood",
        "discriminator.init": str(workdir / "export" / "discriminator"),
        "gad.train_discriminator": False,
        "gad.credit": "token",
        "gad.whitening": "batch",
    }
    run(tiny_config(fields), tmp_path / "run")
    rows = [row for row in untimed(tmp_path / "run") if row["kind"] == "train"]
    assert all(row["generator/grad_norm"] > 0 and "discriminator/grad_norm" not in row for row in rows)


def test_another_size_may_start_from_random_weights(finished, tiny_config, student, tmp_path):
    """The folder needs no weights."""
    fields = FIELDS | {"discriminator.init": str(student), "discriminator.random_init": True}
    setup = prepare_run(tiny_config(fields))
    assert setup.discriminator.head == "lm" and setup.discriminator_init is not None


def test_a_token_classifier_is_no_likelihood(tiny_config, tmp_path):
    run(tiny_config({"stages": ("warmup",)}), tmp_path / "run")
    fields = {"discriminator.kind": "likelihood", "discriminator.init": str(tmp_path / "run/export/discriminator")}
    with pytest.raises(UserError, match="kind=likelihood needs a causal language model"):
        prepare_run(tiny_config(fields))


def test_soda_runs_and_goes_on_where_it_stopped(tiny_config, tmp_path):
    fields = {"stages": ("seqkd", "soda"), "soda.steps": 3, "checkpoint.every": 1, "checkpoint.keep": 10}
    figures = run(tiny_config(fields), tmp_path / "whole")
    assert "soda" in figures and not (tmp_path / "whole" / "export" / "discriminator").exists()
    rows = [row for row in untimed(tmp_path / "whole") if row["kind"] == "train" and row["stage"] == "soda"]
    watched = {rule.figure for rules in RULES.values() for rule in rules if "soda" in rule.advice}
    assert {figure for figure in watched if not figure.startswith("speed/")} <= rows[0].keys()
    stop_before(tiny_config(fields), tmp_path / "run", 3)
    run(tiny_config(fields), tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("field", "value"),
    [("gad.whitening", "group"), ("discriminator.baseline", "policy"), ("seqkd.train_discriminator", False)],
)
def test_a_checkpoint_without_the_parts_of_another_run_is_refused(finished, tiny_config, field, value):
    """Even with --force: statistics, a reference or a discriminator would be missing, or left over."""
    workdir, _ = finished
    setup = prepare_run(tiny_config(FIELDS | {field: value}))
    with pytest.raises(UserError, match=rf"config\.{field}: .* use another --workdir, or --force"):
        check_workdir(setup, workdir)
    with pytest.raises(UserError, match=rf"--force: config\.{field} was .*other parts"):
        check_workdir(setup, workdir, force=True)


@pytest.mark.slow  # two runs with adapters, a minute
@pytest.mark.parametrize("stages", [("warmup", "gad"), ("soda",)])
def test_adapters(tiny_config, student, add_weights, tmp_path, stages):
    """A likelihood discriminator of adapters, and SODA: merged exports, and adapters for causal models."""
    weighty = add_weights(shutil.copytree(student, tmp_path / "student"))
    fields = {"student": str(weighty), "random_init": False, "lora.rank": 2, "stages": stages, "checkpoint.every": 1}
    fields |= {"discriminator.kind": "likelihood", "gad.credit": "token"} if "gad" in stages else {}
    stop_before(tiny_config(fields), tmp_path / "run", 1)
    run(tiny_config(fields), tmp_path / "run")
    run(tiny_config(fields), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    networks = ("generator", "discriminator")[: 1 + ("gad" in stages)]
    for network in networks:
        export = tmp_path / "run" / "export" / network
        assert load_network(str(export), "lm").params
        adapter = json.loads((export / "adapter" / "adapter_config.json").read_text())
        assert adapter["task_type"] == "CAUSAL_LM" and adapter["modules_to_save"] is None
