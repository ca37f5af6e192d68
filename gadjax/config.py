"""Checks of a run's config that need neither data nor weights, so that they come first."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from gadjax.errors import UserError
from gadjax.files import is_url, parse_json

STAGES = ("seqkd", "warmup", "gad")
BEST = ("nll", "rouge_l", "two_sample")  # held-out figures that a checkpoint can be the best by
WATCHDOGS = ("discriminator", "length", "kl", "entropy", "throughput")  # of gadjax.trainer.watchdogs
_FROM_GENERATOR = "generator"  # a value of discriminator.init

# Every field of `configs/base.py`, by the type of its value.
_FIELDS = {
    str: """
        student dtype remat export_dtype data.train data.heldout data.cut_answers data.chat_template
        data.template_args data.template_date discriminator.init discriminator.loss gad.aggregation checkpoint.best
        checkpoint.directory log.wandb_project
    """,
    bool: """
        random_init warmup.train_generator warmup.train_discriminator gad.train_generator gad.train_discriminator
        log.tensorboard offload.optimizer offload.networks
    """,
    int: """
        seed batch_size data.max_prompt_length data.max_response_length rollout.num_samples rollout.slots
        optimizer.max_skipped_steps discriminator.updates_per_step discriminator.replay_size seqkd.steps
        warmup.steps warmup.discriminator_only_steps gad.steps gad.ppo_minibatches gad.ppo_epochs
        micro_batches.generator micro_batches.discriminator micro_batches.tokens row_length logprob_chunk
        mesh.data mesh.fsdp mesh.tensor mesh.decode_tensor eval_every evaluation.prompts evaluation.shown
        evaluation.two_sample_folds evaluation.two_sample_epochs checkpoint.every checkpoint.keep_every checkpoint.keep
        lora.rank
    """,
    float: """
        rollout.temperature optimizer.b1 optimizer.b2 optimizer.eps optimizer.weight_decay optimizer.clip_norm
        discriminator.bt_temperature discriminator.replay_share seqkd.epochs seqkd.generator_learning_rate
        warmup.epochs warmup.generator_learning_rate warmup.discriminator_learning_rate gad.epochs
        gad.generator_learning_rate gad.discriminator_learning_rate gad.clip gad.dual_clip gad.kl_coefficient
        gad.entropy_coefficient gad.sft_coefficient gad.importance_cap evaluation.temperature
        evaluation.two_sample_learning_rate lora.alpha
    """,
    tuple: "stages stop_on",
}
FIELDS = {name: kind for kind, names in _FIELDS.items() for name in names.split()}
_ACCEPTED = {  # what counts as a value of a type, and its name in messages
    str: (str, "text"),
    bool: (bool, "True or False"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    tuple: ((tuple, list, str), "a tuple of names"),
}
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "export_dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
    "data.cut_answers": ("drop", "keep"),
    "discriminator.loss": ("bt", "ce"),
    "gad.aggregation": ("token_mean", "sequence_mean", "constant"),
}
_AT_LEAST = {
    "seed": 0,
    "lora.rank": 0,
    "batch_size": 1,
    "data.max_prompt_length": 1,
    "data.max_response_length": 1,
    "rollout.num_samples": 1,
    "rollout.slots": 0,
    "mesh.decode_tensor": 0,
    "discriminator.updates_per_step": 1,
    "discriminator.replay_size": 0,
    "warmup.discriminator_only_steps": 0,
    "gad.ppo_minibatches": 1,
    "gad.ppo_epochs": 1,
    "gad.kl_coefficient": 0,
    "gad.entropy_coefficient": 0,
    "gad.sft_coefficient": 0,
    "gad.importance_cap": 0,
    "micro_batches.generator": 0,
    "micro_batches.discriminator": 0,
    "micro_batches.tokens": 1,
    "row_length": 0,
    "logprob_chunk": 1,
    "eval_every": 0,
    "evaluation.prompts": 0,
    "evaluation.shown": 0,
    "evaluation.temperature": 0,
    "evaluation.two_sample_folds": 0,
    "evaluation.two_sample_epochs": 1,
    "optimizer.weight_decay": 0,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "checkpoint.keep_every": 0,
    "optimizer.max_skipped_steps": 1,
}
_STORE = "gs://"  # the object store that Orbax writes to
_BELOW = {"seed": 2**32}  # JAX takes the lower 32 bits
_MOST = 2**63
_ABOVE = {
    "lora.alpha": 0,
    "rollout.temperature": 0,
    "discriminator.bt_temperature": 0,
    "optimizer.clip_norm": 0,
    "optimizer.eps": 0,
    "gad.clip": 0,
    "gad.dual_clip": 1,  # at 1 and below, no token of negative advantage would have a gradient
    "evaluation.two_sample_learning_rate": 0,
}


def resolve(config: ConfigDict) -> ConfigDict:
    """The config that a run uses, checked: `stages` and `stop_on` as tuples (on the command line, names and commas).

    Raises a `UserError` that names the field for every value or combination that no run can work with.
    """
    config = config.copy_and_resolve_references()
    _check_fields(config)
    names = {
        "stages": _names("stages", config.stages, STAGES),
        "stop_on": tuple(name for name in _names("stop_on", config.stop_on, WATCHDOGS) if name),  # of "", none
    }
    with config.unlocked():
        for field, value in names.items():
            del config[field]  # or a list would stay a list
            config[field] = value
    _check_values(config)
    template_args(config)
    _check_stages(config)
    _check_watchdogs(config)
    _check_checkpoints(config)
    _check_batch(config)
    _check_adapters(config)
    return config


def template_args(config: ConfigDict) -> dict[str, Any]:
    """The chat template's extra arguments from `data.template_args`."""
    text = config.data.template_args
    try:
        arguments = parse_json(text, constants=False) if text else {}
    except ValueError as error:
        raise UserError(f"config.data.template_args is not JSON ({error}): write it as '{{\"key\": value}}'") from None
    if not isinstance(arguments, dict):
        raise UserError("config.data.template_args must be a JSON object, such as '{\"enable_thinking\": false}'")
    return arguments


def discriminator_checkpoint(config: Mapping[str, Any]) -> str | None:
    """The directory or hub id that `discriminator.init` names; None where the discriminator grows from the run's own.

    Args:
      config: a `ConfigDict`, or the contents of a run's config.json.
    """
    init = config["discriminator"]["init"]
    return None if init in ("", _FROM_GENERATOR) else init


def grows_from_generator(config: Mapping[str, Any]) -> bool:
    """Whether the discriminator starts as a copy of the generator as it then is, and not of the student."""
    return config["discriminator"]["init"] == _FROM_GENERATOR


def needs_trained_discriminator(config: ConfigDict) -> bool:
    """Whether stage gad uses a discriminator that no stage of this run trains."""
    warmed = "warmup" in config.stages and config.warmup.train_discriminator
    return "gad" in config.stages and not config.gad.train_discriminator and not warmed


def check_warmup_length(config: ConfigDict, steps: int) -> None:
    """Raises a `UserError` where warmup of this many steps ends before the generator's part of it begins."""
    section = config.warmup
    if section.train_generator and section.train_discriminator and section.discriminator_only_steps >= steps:
        raise UserError(
            f"config.warmup.discriminator_only_steps {section.discriminator_only_steps} leaves the generator none of "
            f"warmup's {steps} steps: lower it, lengthen warmup, or set config.warmup.train_generator=False"
        )


def field_value(config: Mapping[str, Any], field: str) -> Any:
    """The value of a field by its dotted name, None where there is none; `config` as in `discriminator_checkpoint`."""
    value = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping | ConfigDict) else None
    return value


def _check_fields(config: ConfigDict) -> None:
    """Every field is there with a value of its type, and no other: Python may hand over any ConfigDict."""
    found = dict(_flat(config))
    for field, kind in FIELDS.items():
        if field not in found:
            raise UserError(f"config.{field} is missing: start from get_config() of configs/base.py")
        accepted, meaning = _ACCEPTED[kind]
        if not isinstance(found[field], accepted) or isinstance(found[field], bool) != (kind is bool):
            raise UserError(f"config.{field} is {found[field]!r}: it must be {meaning}")
    for field in found:
        if field not in FIELDS:
            raise UserError(f"config.{field} is not a field of a run: see configs/base.py for those that are")


def _flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _names(field: str, names: tuple | list | str, known: tuple[str, ...]) -> tuple[str, ...]:
    entries = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"config.{field} is {entries}: name one or more of {', '.join(known)}")
    return tuple(part.strip() for entry in entries for part in entry.split(","))


def _check_values(config: ConfigDict) -> None:
    for field in ("student", "data.train"):
        if not field_value(config, field):
            raise UserError(f"config.{field} is empty: give it on the command line as --config.{field}=PATH")
    for field, kind in FIELDS.items():
        bound, value = _BELOW.get(field, _MOST), field_value(config, field)
        if kind in (int, float) and isinstance(value, int) and abs(value) >= bound:
            raise UserError(f"config.{field} is {value}: it must be below {bound} in size")
    for field, choices in _CHOICES.items():
        if (value := field_value(config, field)) not in choices:
            raise UserError(f"config.{field} is {value!r}: choose one of {', '.join(choices)}")
    for field, least in _AT_LEAST.items():
        if not (value := field_value(config, field)) >= least:  # true of NaN too
            raise UserError(f"config.{field} is {value}: it must be at least {least}")
    for field, bound in _ABOVE.items():
        if not (value := field_value(config, field)) > bound:
            raise UserError(f"config.{field} is {value}: it must be above {bound}")
    for field in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= (value := field_value(config, field)) < 1:
            raise UserError(f"config.{field} is {value}: it must be at least 0 and below 1")
    for field in (field for field, kind in FIELDS.items() if kind is float):
        if not math.isfinite(value := field_value(config, field)):
            raise UserError(f"config.{field} is {value}: it must be a finite number")
    if config.evaluation.two_sample_folds == 1:
        raise UserError("config.evaluation.two_sample_folds is 1: give at least 2, or 0 to leave the test out")


def _check_stages(config: ConfigDict) -> None:
    stages = config.stages
    unknown = [stage for stage in stages if stage not in STAGES]
    if not stages or unknown:
        raise UserError(f"config.stages is {stages}: name one or more of {', '.join(STAGES)}")
    if len(set(stages)) < len(stages):
        raise UserError(f"config.stages is {stages}: each stage runs once")
    if list(stages) != sorted(stages, key=STAGES.index):
        raise UserError(f"config.stages is {stages}: the order is {', '.join(STAGES)}")
    for stage in stages:
        section = config[stage]
        if section.steps < 0 or (section.steps == 0 and not section.epochs > 0):
            raise UserError(f"config.{stage} has no length: set config.{stage}.steps or config.{stage}.epochs above 0")
        for name in ("generator_learning_rate", "discriminator_learning_rate"):
            if name in section and not section[name] > 0:
                raise UserError(f"config.{stage}.{name} is {section[name]}: it must be above 0")
        if stage != "seqkd" and not (section.train_generator or section.train_discriminator):
            raise UserError(
                f"config.{stage} trains nothing: set train_generator or train_discriminator, or leave it out"
            )
    if "warmup" in stages and config.warmup.steps:
        check_warmup_length(config, config.warmup.steps)
    if needs_trained_discriminator(config) and discriminator_checkpoint(config) is None:
        raise UserError(
            "stage gad has no discriminator: config.gad.train_discriminator is off and nothing trained one; add the "
            "warmup stage, or name an exported one in config.discriminator.init"
        )
    samples, replay = config.rollout.num_samples, config.discriminator.replay_size
    if set(stages) & {"warmup", "gad"} and samples < 2:
        raise UserError(
            f"config.rollout.num_samples is {samples}: warmup and gad compare samples of the same prompt and need at "
            "least 2"
        )
    if replay and not 0 < config.discriminator.replay_share < 1:
        raise UserError("config.discriminator.replay_share must lie between 0 and 1 when replay_size is set")
    if 0 < replay < samples:
        raise UserError(
            f"config.discriminator.replay_size {replay} has no room for the {samples} samples "
            f"(config.rollout.num_samples) of one prompt: use at least {samples}, or 0 for no replay"
        )


def _check_watchdogs(config: ConfigDict) -> None:
    if unknown := [name for name in config.stop_on if name not in WATCHDOGS]:
        raise UserError(
            f"config.stop_on names {', '.join(unknown)}: choose among {', '.join(WATCHDOGS)}, with commas between, or "
            "none"
        )


def _check_checkpoints(config: ConfigDict) -> None:
    best, directory = config.checkpoint.best, config.checkpoint.directory
    if best and best not in BEST:
        raise UserError(f'config.checkpoint.best is {best!r}: choose one of {", ".join(BEST)}, or leave it at ""')
    if best and not config.data.heldout:
        raise UserError(
            f"config.checkpoint.best {best} is measured on held-out prompts, and config.data.heldout is empty: give "
            'some, or leave config.checkpoint.best at ""'
        )
    if best == "two_sample" and not config.evaluation.two_sample_folds:
        raise UserError(
            "config.checkpoint.best is two_sample, which config.evaluation.two_sample_folds=0 leaves out: set that to "
            "2 or more, or choose another figure"
        )
    if is_url(directory) and not directory.startswith(_STORE):
        raise UserError(
            f"config.checkpoint.directory is {directory}: give a folder, or an address that begins with {_STORE}"
        )


def _check_batch(config: ConfigDict) -> None:
    batch, parts = config.batch_size, config.micro_batches
    for field, size in (
        ("micro_batches.generator", parts.generator),
        ("micro_batches.discriminator", parts.discriminator),
    ):
        if size and batch % size:
            raise UserError(f"config.batch_size {batch} is not divisible by config.{field} {size}")
    pieces = config.gad.ppo_minibatches * max(parts.generator, 1)
    if "gad" in config.stages and batch % pieces:
        raise UserError(
            f"config.batch_size {batch} is not divisible by config.gad.ppo_minibatches * "
            f"config.micro_batches.generator = {pieces}"
        )


def _check_adapters(config: ConfigDict) -> None:
    """All networks of a run with adapters stand on the student's weights."""
    if not config.lora.rank:
        return
    if config.random_init:
        raise UserError(
            f"config.lora.rank is {config.lora.rank}, but config.random_init is on: adapters leave the student's "
            "weights as they are, so give a student that has some, or train everything with config.lora.rank=0"
        )
    if named := discriminator_checkpoint(config):
        raise UserError(
            f"config.discriminator.init {named} names a checkpoint, but with config.lora.rank {config.lora.rank} the "
            'discriminator is adapters on the student: leave it at "" or "generator", or use config.lora.rank=0'
        )
