"""Checks of a config that need neither data nor weights: the message names the field."""

from __future__ import annotations

import math

import pytest

from gadjax.config import default_config, load_config, shipped
from gadjax.config.check import discriminator_checkpoint, field_value, grows_from_generator, resolve, template_args
from gadjax.config.fields import FIELDS, STAGES
from gadjax.errors import UserError

pytestmark = pytest.mark.quick

NAN = math.nan


def test_defaults_are_the_papers():
    config = default_config()
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
    # The options that steady the game (`docs/algorithm.md`, section 7) are off.
    assert config.discriminator.updates_per_step == config.discriminator.bt_temperature == 1
    assert config.discriminator.replay_size == config.gad.sft_coefficient == config.gad.importance_cap == 0


def test_every_shipped_config_resolves(repo):
    assert shipped.folder() == repo / "configs"
    names = {"base", "demo", "qwen3b", "qwen7b", "qwen14b", "llama3b", "llama8b", "smollm2_135m"}
    assert names <= set(shipped.names())
    for name in shipped.names():
        config = load_config(name)
        config.student = config.student or "student"
        config.data.train = config.data.train or "train.parquet"
        assert resolve(config).stages, name


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_config_without_a_field(tiny_config, field):
    """As Python may hand it over; the command line cannot take a field away."""
    config = tiny_config().unlock()
    section = config
    *sections, name = field.split(".")
    for part in sections:
        section = section[part]
    del section[name]
    with pytest.raises(
        UserError, match=rf"^config\.{field} is missing: start from default_config\(\) of gadjax.config$"
    ):
        resolve(config)


def test_a_config_of_nothing():
    from ml_collections import ConfigDict

    with pytest.raises(UserError, match=r"^config\.student is missing"):
        resolve(ConfigDict())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", "8", r"config\.batch_size is '8': it must be an integer"),
        ("batch_size", True, r"config\.batch_size is True: it must be an integer"),
        ("batch_size", 8.5, r"config\.batch_size is 8\.5: it must be an integer"),
        ("gad.clip", "much", r"config\.gad\.clip is 'much': it must be a number"),
        ("random_init", 1, r"config\.random_init is 1: it must be True or False"),
        ("student", None, r"config\.student is None: it must be text"),
        ("stages", 3, r"config\.stages is 3: it must be a tuple of names"),
        ("gad.klip", 0.2, r"config\.gad\.klip is not a field of a run"),
        ("gad", 0.2, r"config\.gad\.\w+ is missing"),
    ],
)
def test_a_config_made_by_hand(tiny_config, field, value, message):
    config = tiny_config().unlock()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value}) if field != "gad.klip" else config.gad.update(klip=value)
    with pytest.raises(UserError, match=message) as error:
        resolve(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("init", "checkpoint", "from_generator"),
    [("", None, False), ("generator", None, True), ("org/model", "org/model", False)],
)
def test_where_the_discriminator_starts(tiny_config, init, checkpoint, from_generator):
    """Of a config, and of a run's config.json."""
    config = tiny_config({"discriminator.init": init})
    for either in (config, config.to_dict()):
        assert (discriminator_checkpoint(either), grows_from_generator(either)) == (checkpoint, from_generator)
        assert field_value(either, "discriminator.init") == init
        assert field_value(either, "discriminator.no.such") is None


def test_stages_from_the_command_line(tiny_config):
    assert resolve(tiny_config({"stages": ("warmup, gad",)})).stages == ("warmup", "gad")
    config = tiny_config().unlock()
    for stages in ("warmup,gad", ["warmup", "gad"]):
        with config.ignore_type():
            config.stages = stages
        assert resolve(config).stages == ("warmup", "gad")
    assert resolve(tiny_config({"stages": ("seqkd", "gad")})).stages == ("seqkd", "gad")


def test_watchdogs_from_the_command_line(tiny_config):
    assert resolve(tiny_config()).stop_on == ()
    for given in (("kl, length",), ("kl", "length"), ("kl,,length,",)):
        assert resolve(tiny_config({"stop_on": given})).stop_on == ("kl", "length")
    assert resolve(tiny_config({"stop_on": ("",)})).stop_on == ()  # as --config.stop_on= gives it


def test_the_given_config_stays_as_it_is(tiny_config):
    config = tiny_config({"stages": ("warmup,gad",)})
    resolve(config)
    assert config.stages == ("warmup,gad",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"student": ""}, r"config\.student is empty"),
        ({"data.train": ""}, r"config\.data\.train is empty.*--config\.data\.train=PATH"),
        ({"stages": ("warmup", "gan")}, r"config\.stages is .*'gan'.*seqkd, soda, warmup, gad"),
        ({"stages": ()}, r"config\.stages is \(\)"),
        ({"stages": ("",)}, r"config\.stages is \(\)"),
        ({"stages": ("warmup,,gad",)}, r"config\.stages is \('warmup', '', 'gad'\): name one or more of seqkd, "),
        ({"stages": (1, 2)}, r"config\.stages is \(1, 2\): name one or more of seqkd, soda, warmup, gad"),
        ({"stages": ("gad", "gad")}, "each stage runs once"),
        (
            {"stop_on": ("kl,speed", "KL")},
            r"config\.stop_on is \('kl', 'speed', 'KL'\): name one or more of discriminator, .*throughput, or none",
        ),
        ({"stop_on": (1,)}, r"config\.stop_on is \(1,\): name one or more of discriminator, "),
        ({"stages": ("gad", "warmup")}, "the order is seqkd, soda, warmup, gad"),
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
        (
            {"checkpoint.best": "length_mean"},
            r"checkpoint\.best is .*length_mean.*: choose one of nll, rouge_l, two_sample",
        ),
        ({"checkpoint.best": "nll", "data.heldout": ""}, r"checkpoint\.best nll is measured on held-out prompts, and"),
        (
            {"checkpoint.best": "two_sample", "data.heldout": "h", "evaluation.two_sample_folds": 0},
            r"checkpoint\.best is two_sample, which config\.evaluation\.two_sample_folds=0 leaves out",
        ),
        ({"checkpoint.directory": "ftp://host/run"}, r"checkpoint\.directory is ftp://host/run: .* begins with gs://"),
        ({"checkpoint.directory": "s3://bucket/run"}, r"checkpoint\.directory is s3://bucket/run: .* gs://"),
        ({"gad.kl_coefficient": NAN}, r"config\.gad\.kl_coefficient is nan: it must be a finite number"),
        ({"gad.entropy_coefficient": NAN}, r"config\.gad\.entropy_coefficient is nan: it must be a finite number"),
        ({"gad.dual_clip": 1.0}, r"config\.gad\.dual_clip is 1\.0: it must be above 1"),
        ({"gad.dual_clip": 0.5}, r"config\.gad\.dual_clip is 0\.5: it must be above 1"),
        ({"gad.generator_learning_rate": math.inf}, r"config\.gad\.generator_learning_rate is inf: .* finite number"),
        ({"warmup.epochs": NAN}, r"config\.warmup\.epochs is nan: it must be a finite number"),
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
        (
            {"discriminator.replay_size": 3, "rollout.num_samples": 4},
            r"config\.discriminator\.replay_size 3 has no room for the 4 samples .* at least 4, or 0",
        ),
        (
            {"warmup.steps": 2, "warmup.discriminator_only_steps": 2},
            r"config\.warmup\.discriminator_only_steps 2 leaves the generator none of warmup's 2 steps: lower it",
        ),
        ({"stages": ("seqkd",), "rollout.num_samples": 0}, r"config\.rollout\.num_samples is 0: it must be at least 1"),
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
        # Limits of what the stages at hand do not do.
        {"stages": ("seqkd", "warmup"), "gad.ppo_minibatches": 3},
        {"warmup.steps": 2, "warmup.discriminator_only_steps": 9, "warmup.train_generator": False},
        {"warmup.steps": 2, "warmup.discriminator_only_steps": 9, "warmup.train_discriminator": False},
        {"discriminator.replay_size": 2},
    ],
)
def test_every_ablation_can_be_expressed(tiny_config, fields):
    assert set(resolve(tiny_config(fields)).stages) <= set(STAGES)


def test_template_args(tiny_config):
    assert template_args(tiny_config()) == {}
    assert template_args(tiny_config({"data.template_args": '{"enable_thinking": false}'})) == {
        "enable_thinking": False
    }
