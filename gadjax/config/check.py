"""Checks of a run's config that need neither data nor weights, so that they come first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
from ml_collections import ConfigDict

from gadjax.config import reference
from gadjax.config.fields import FIELDS, STAGES, RunFields
from gadjax.config.method_checks import (
    check_discriminator,
    check_rewards,
    check_schedules,
    steps_without_generator,
)
from gadjax.errors import UserError, first_line
from gadjax.files import is_url, parse_json

_FROM_GENERATOR = "generator"  # a value of discriminator.init
_OBJECT_STORE = "gs://"  # the one that Orbax writes to
_INTEGER_LIMIT = 2**63


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy of the config, in which `stages` and `stop_on` are tuples.

    On the command line these two are names with commas between them.

    Raises:
      UserError: a value or combination that no run can work with; the message names the field.
    """
    config = config.copy_and_resolve_references()
    _check_names(config)
    with config.unlocked():
        for field in ("stages", "stop_on"):
            names = _split_names(config[field])
            if field == "stop_on" and isinstance(names, tuple):
                names = tuple(filter(None, names))  # a trailing comma names none
            del config[field]  # or a list would stay a list
            config[field] = names
    _check_values(config)
    _check_user(config)
    template_args(config)
    _check_stages(config)
    check_discriminator(config)
    check_rewards(config)
    check_schedules(config)
    _check_samples(config)
    _check_heldout(config)
    _check_checkpoints(config)
    _check_batch(config)
    _check_adapters(config)
    return config


def template_args(config: ConfigDict) -> dict[str, Any]:
    """The chat template's extra arguments from `data.template_args`.

    Raises:
      UserError: the field is not a JSON object.
    """
    text = config.data.template_args
    try:
        arguments = parse_json(text, constants=False) if text else {}
    except ValueError as error:
        raise UserError(f"config.data.template_args is not JSON ({error}): write it as '{{\"key\": value}}'") from None
    if not isinstance(arguments, dict):
        raise UserError("config.data.template_args must be a JSON object, such as '{\"enable_thinking\": false}'")
    return arguments


def discriminator_checkpoint(config: Mapping[str, Any]) -> str | None:
    """The directory or hub id in `discriminator.init`; None if the discriminator starts from the student or generator.

    Args:
      config: a `ConfigDict`, or the contents of a run's config.json.
    """
    init = config["discriminator"]["init"]
    return None if init in ("", _FROM_GENERATOR) else init


def grows_from_generator(config: Mapping[str, Any]) -> bool:
    """Whether the discriminator starts as a copy of the generator at that moment, and not of the student."""
    return config["discriminator"]["init"] == _FROM_GENERATOR


def has_heldout(config: ConfigDict) -> bool:
    """Whether the run is measured on held-out prompts."""
    return bool(config.data.heldout or config.data.heldout_share)


def samples_heldout(config: ConfigDict) -> bool:
    """Whether the ends of stages are measured on samples to held-out prompts too."""
    return bool(config.evaluation.two_sample_folds or config.evaluation.coverage)


def uses_discriminator(config: Mapping[str, Any], stage: str) -> bool:
    """Whether a stage has a discriminator."""
    return stage in ("warmup", "gad") or (stage == "seqkd" and bool(field_value(config, "seqkd.train_discriminator")))


def needs_reference(config: ConfigDict, stage: str) -> bool:
    """Whether a stage keeps a copy of the generator as it entered the stage."""
    compared = config.discriminator.kind == "likelihood" and config.discriminator.baseline == "reference"
    return stage in ("soda", "gad") or (stage == "warmup" and compared)


def keeps_statistics(config: ConfigDict, stage: str) -> bool:
    """Whether a stage keeps statistics of its rewards."""
    return stage == "gad" and config.gad.whitening == "running"


def needs_trained_discriminator(config: ConfigDict) -> bool:
    """Whether stage gad uses a discriminator that no stage of this run trains."""
    trained = any(stage in config.stages and config[stage].train_discriminator for stage in ("seqkd", "warmup", "gad"))
    return "gad" in config.stages and not trained


def check_warmup_length(config: ConfigDict, steps: int) -> None:
    """Raises a `UserError` if warmup of this many steps ends before it has trained the generator."""
    waits = steps_without_generator(config, "warmup")
    if waits >= steps:
        raise UserError(
            f"config.warmup.discriminator_only_steps {waits} leaves the generator none of warmup's {steps} steps: "
            "lower it, lengthen warmup, or set config.warmup.train_generator=False"
        )


def field_value(config: Mapping[str, Any], field: str) -> Any:
    """The value of a field, None if the config has no such field.

    Args:
      config: a `ConfigDict`, or the contents of a run's config.json.
      field: its dotted name, such as "gad.clip".
    """
    value: Any = config
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping | ConfigDict) else None
    return value


def _check_names(config: ConfigDict) -> None:
    """Refuses a config without one of the fields, or with others: Python may pass any ConfigDict."""
    found = set(_flat_names(config))
    for field in FIELDS:
        if field not in found:
            raise UserError(f"config.{field} is missing: start from default_config() of gadjax.config")
    for field in sorted(found - FIELDS.keys()):
        raise UserError(f"config.{field} is not a field of a run: see docs/config.md for those that are")


def _flat_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict) and prefix + name not in FIELDS:
            yield from _flat_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _split_names(names: Any) -> Any:
    """A tuple of names, split at commas; anything that is no text stays as it is, for `_check_values` to refuse."""
    entries = (names,) if isinstance(names, str) else names
    if not isinstance(entries, tuple | list) or not all(isinstance(entry, str) for entry in entries):
        return entries
    split = tuple(name.strip() for entry in entries for name in entry.split(","))
    return () if split == ("",) else split  # as --config.stop_on= gives it


def _check_values(config: ConfigDict) -> None:
    """Checks each field against its declaration: type, choices and bounds."""
    for field in FIELDS:
        value = field_value(config, field)
        if isinstance(value, int) and abs(value) >= _INTEGER_LIMIT:
            raise UserError(f"config.{field} is {value}: it must be below {_INTEGER_LIMIT} in size")
    try:
        RunFields.model_validate(config.to_dict())
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(part for part in first["loc"] if isinstance(part, str))  # an int counts a tuple's names
        raise UserError(_refusal(field, field_value(config, field), first["type"])) from None


def _check_user(config: ConfigDict) -> None:
    """Checks that the user's own values can be written to config.json."""
    try:
        json.dumps(config.user.to_dict(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.user cannot be written as JSON ({first_line(error)}): use numbers, texts, lists and names"
        ) from None


def _refusal(field: str, value: Any, problem: str) -> str:
    """The message for a value that is refused; `problem` is pydantic's name of an error."""
    declared = FIELDS[field]
    choices = ", ".join(reference.choices(declared))
    none = "" if declared.default else ", or none"
    if problem == "string_too_short":
        return f"config.{field} is empty: give it on the command line as --config.{field}=PATH"
    if isinstance(declared.default, tuple) and isinstance(value, tuple):
        return f"config.{field} is {value}: name one or more of {choices}{none}"
    if problem == "literal_error":
        return f"config.{field} is {value!r}: choose one of {choices}" + (', or leave it at ""' if none else "")
    if problem == "finite_number":
        return f"config.{field} is {value}: it must be a finite number"
    wanted = reference.kind(declared) if problem.endswith("_type") else reference.bounds(declared)
    return f"config.{field} is {value!r}: it must be {wanted}"


def _check_stages(config: ConfigDict) -> None:
    """Checks the stages' order and, for each stage that runs, its length, learning rates and what it trains."""
    stages = config.stages
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
        if "train_generator" in section and not (section.train_generator or section.train_discriminator):
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


def _check_samples(config: ConfigDict) -> None:
    """Checks the numbers of samples: of a prompt, of the replay, and the folds of the two-sample test."""
    samples, replay = config.rollout.num_samples, config.discriminator.replay_size
    if set(config.stages) & {"warmup", "gad"} and samples < 2:
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
    wanted = config.evaluation.coverage
    try:
        groups = re.compile(wanted).groups
    except re.error as error:
        raise UserError(f"config.evaluation.coverage {wanted!r} is no regular expression: {error}") from None
    if wanted and not groups:
        raise UserError(
            f"config.evaluation.coverage {wanted!r} has no group: put the words that an answer should name in "
            "parentheses"
        )
    if config.evaluation.two_sample_folds == 1:
        raise UserError("config.evaluation.two_sample_folds is 1: give at least 2, or 0 to leave the test out")


def _check_heldout(config: ConfigDict) -> None:
    """Checks that held-out prompts come from one place."""
    if config.data.heldout and config.data.heldout_share:
        raise UserError(
            f"config.data.heldout is {config.data.heldout} and config.data.heldout_share {config.data.heldout_share}: "
            "set one of them"
        )


def _check_checkpoints(config: ConfigDict) -> None:
    """Checks that the figure of the best checkpoint is measured, and that checkpoints can be written."""
    best, directory = config.checkpoint.best, config.checkpoint.directory
    if best and not has_heldout(config):
        raise UserError(
            f"config.checkpoint.best {best} is measured on held-out prompts, and there are none: set "
            'config.data.heldout or config.data.heldout_share, or leave config.checkpoint.best at ""'
        )
    if best == "two_sample" and not config.evaluation.two_sample_folds:
        raise UserError(
            "config.checkpoint.best is two_sample, which config.evaluation.two_sample_folds=0 leaves out: set that to "
            "2 or more, or choose another figure"
        )
    if is_url(directory) and not directory.startswith(_OBJECT_STORE):
        raise UserError(
            f"config.checkpoint.directory is {directory}: give a folder, or an address that begins with {_OBJECT_STORE}"
        )


def _check_batch(config: ConfigDict) -> None:
    """Checks that the batch divides into micro-batches and minibatches."""
    batch, parts = config.batch_size, config.micro_batches
    for network in ("generator", "discriminator"):
        if (size := parts[network]) and batch % size:
            raise UserError(f"config.batch_size {batch} is not divisible by config.micro_batches.{network} {size}")
    pieces = config.gad.ppo_minibatches * max(parts.generator, 1)
    if "gad" in config.stages and batch % pieces:
        raise UserError(
            f"config.batch_size {batch} is not divisible by config.gad.ppo_minibatches * "
            f"config.micro_batches.generator = {pieces}"
        )


def _check_adapters(config: ConfigDict) -> None:
    """Checks that a run with adapters has weights to put them on, and the student's for all networks."""
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
