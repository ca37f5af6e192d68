"""Checks of a config that need neither data nor weights: the message names the field."""

from __future__ import annotations

import math

import pytest

from gadjax.config import STAGES, resolve, template_args
from gadjax.errors import UserError

NAN = math.nan


def test_defaults_are_the_papers(repo):
    from configs.base import get_config

    config = get_config()
    assert config.batch_size == 256
    assert (config.rollout.num_samples, config.rollout.temperature) == (8, 0.8)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (2048, 1536)
    assert (config.seqkd.epochs, config.warmup.epochs, config.gad.epochs) == (3, 1, 2)
    assert config.seqkd.generator_learning_rate == 5e-6
    for stage in (config.warmup, config.gad):
        assert stage.generator_learning_rate == stage.discriminator_learning_rate == 1e-6
    assert config.warmup.discriminator_only_steps == 10
    assert (config.gad.clip, config.gad.dual_clip, config.gad.kl_coefficient) == (0.2, 3.0, 1e-3)
    assert (config.gad.ppo_minibatches, config.gad.ppo_epochs, config.gad.entropy_coefficient) == (1, 1, 0)
    optimizer = config.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip_norm) == (0.9, 0.999, 0.01, 0.2)
    # The options of the algorithm page's section 7 are off.
    assert config.discriminator.updates_per_step == config.discriminator.bt_temperature == 1
    assert config.discriminator.replay_size == config.gad.sft_coefficient == config.gad.importance_cap == 0


def test_every_config_of_the_repository_resolves(repo):
    import importlib

    names = sorted(path.stem for path in (repo / "configs").glob("*.py") if path.stem != "__init__")
    assert {"base", "demo", "qwen3b", "qwen7b", "qwen14b", "llama3b", "llama8b", "smollm2_135m"} <= set(names)
    for name in names:
        config = importlib.import_module(f"configs.{name}").get_config()
        config.student = config.student or "student"
        config.data.train = config.data.train or "train.parquet"
        assert resolve(config).stages, name


def test_stages_from_the_command_line(tiny_config):
    assert resolve(tiny_config({"stages": ("warmup, gad",)})).stages == ("warmup", "gad")
    assert resolve(tiny_config({"stages": ("seqkd", "gad")})).stages == ("seqkd", "gad")


def test_the_given_config_stays_as_it_is(tiny_config):
    config = tiny_config({"stages": ("warmup,gad",)})
    resolve(config)
    assert config.stages == ("warmup,gad",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"student": ""}, r"config\.student is empty"),
        ({"data.train": ""}, r"config\.data\.train is empty.*--config\.data\.train=PATH"),
        ({"stages": ("warmup", "gan")}, r"config\.stages is .*'gan'.*seqkd, warmup, gad"),
        ({"stages": ()}, r"config\.stages is \(\)"),
        ({"stages": ("",)}, r"config\.stages is \('',\)"),
        ({"stages": ("gad", "gad")}, "each stage runs once"),
        ({"stages": ("gad", "warmup")}, "the order is seqkd, warmup, gad"),
        ({"dtype": "float16"}, r"config\.dtype is 'float16': choose one of auto, float32, bfloat16"),
        ({"export_dtype": "auto"}, r"config\.export_dtype is 'auto'"),
        ({"remat": "some"}, r"config\.remat is 'some': choose one of none, dots, full"),
        ({"data.cut_answers": "cut"}, r"config\.data\.cut_answers is 'cut': choose one of drop, keep"),
        ({"discriminator.loss": "hinge"}, r"config\.discriminator\.loss is 'hinge': choose one of bt, ce"),
        ({"gad.aggregation": "sum"}, r"config\.gad\.aggregation is 'sum': choose one of token_mean"),
        ({"seed": -1}, r"config\.seed is -1: it must be at least 0"),
        ({"batch_size": 0}, r"config\.batch_size is 0: it must be at least 1"),
        ({"data.max_response_length": 0}, r"config\.data\.max_response_length is 0"),
        ({"gad.kl_coefficient": -1.0}, r"config\.gad\.kl_coefficient is -1"),
        ({"gad.kl_coefficient": NAN}, r"config\.gad\.kl_coefficient is nan: it must be at least 0"),
        ({"rollout.temperature": 0.0}, r"config\.rollout\.temperature is 0.*above 0"),
        ({"optimizer.clip_norm": 0.0}, r"config\.optimizer\.clip_norm is 0.*above 0"),
        ({"optimizer.b2": 1.0}, r"config\.optimizer\.b2 is 1.*below 1"),
        ({"discriminator.bt_temperature": 0.0}, r"config\.discriminator\.bt_temperature is 0"),
        ({"evaluation.two_sample_folds": 1}, r"config\.evaluation\.two_sample_folds is 1: give at least 2, or 0"),
        ({"rollout.num_samples": 1}, r"config\.rollout\.num_samples is 1: .* at least 2"),
        ({"stages": ("seqkd",), "seqkd.steps": 0, "seqkd.epochs": 0.0}, r"config\.seqkd has no length"),
        ({"gad.steps": -1}, r"config\.gad has no length"),
        ({"gad.generator_learning_rate": 0.0}, r"config\.gad\.generator_learning_rate is 0.*above 0"),
        ({"warmup.discriminator_learning_rate": NAN}, r"config\.warmup\.discriminator_learning_rate is nan"),
        (
            {"warmup.train_generator": False, "warmup.train_discriminator": False},
            r"config\.warmup trains nothing",
        ),
        (
            {"stages": ("seqkd", "gad"), "gad.train_discriminator": False},
            r"stage gad has no discriminator.*warmup.*config\.discriminator\.init",
        ),
        (
            {"stages": ("gad",), "gad.train_discriminator": False, "discriminator.init": "generator"},
            "stage gad has no discriminator",
        ),
        (
            {"gad.train_discriminator": False, "warmup.train_discriminator": False},
            "stage gad has no discriminator",
        ),
        ({"discriminator.replay_size": 8, "discriminator.replay_share": 1.0}, r"config\.discriminator\.replay_share"),
        ({"data.template_args": "{not json"}, r"config\.data\.template_args is not JSON"),
        ({"data.template_args": "[1]"}, r"config\.data\.template_args must be a JSON object"),
        (
            {"micro_batches.generator": 3},
            r"config\.batch_size 8 is not divisible by config\.micro_batches\.generator 3",
        ),
        ({"micro_batches.discriminator": 5}, r"batch_size 8 .* config\.micro_batches\.discriminator 5"),
        (
            {"gad.ppo_minibatches": 4, "micro_batches.generator": 4},
            r"batch_size 8 is not divisible by config\.gad\.ppo_minibatches \* config\.micro_batches\.generator = 16",
        ),
    ],
)
def test_what_cannot_work_is_refused(tiny_config, fields, message):
    with pytest.raises(UserError, match=message) as error:
        resolve(tiny_config(fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"stages": ("seqkd",), "rollout.num_samples": 1},  # samples nothing
        {"gad.train_discriminator": False},  # frozen as warmup left it
        {"stages": ("gad",), "gad.train_discriminator": False, "discriminator.init": "exported/discriminator"},
        {"stages": ("gad",)},  # no generator warmup, no discriminator warmup
        {"warmup.train_generator": False},
        {"warmup.train_discriminator": False},
        {"discriminator.loss": "ce"},
    ],
)
def test_every_ablation_can_be_expressed(tiny_config, fields):
    assert set(resolve(tiny_config(fields)).stages) <= set(STAGES)


def test_template_args(tiny_config):
    assert template_args(tiny_config()) == {}
    assert template_args(tiny_config({"data.template_args": '{"enable_thinking": false}'})) == {
        "enable_thinking": False
    }
