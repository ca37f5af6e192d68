"""Checks of a run's config that need neither data nor weights, so that they come first."""

from __future__ import annotations

import json
from typing import Any

from ml_collections import ConfigDict

from gadjax.errors import UserError

STAGES = ("seqkd", "warmup", "gad")

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
    "batch_size": 1,
    "data.max_prompt_length": 1,
    "data.max_response_length": 1,
    "discriminator.updates_per_step": 1,
    "discriminator.replay_size": 0,
    "warmup.discriminator_only_steps": 0,
    "gad.ppo_minibatches": 1,
    "gad.ppo_epochs": 1,
    "gad.kl_coefficient": 0,
    "gad.sft_coefficient": 0,
    "gad.importance_cap": 0,
    "micro_batches.generator": 1,
    "micro_batches.discriminator": 1,
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
    "optimizer.max_skipped_steps": 1,
}
_POSITIVE = (
    "rollout.temperature",
    "discriminator.bt_temperature",
    "optimizer.clip_norm",
    "optimizer.eps",
    "gad.clip",
    "gad.dual_clip",
    "evaluation.two_sample_learning_rate",
)


def resolve(config: ConfigDict) -> ConfigDict:
    """The config that a run uses: `stages` as a tuple (the command line may say --config.stages=warmup,gad), checked.

    Raises a `UserError` that names the field for every value or combination that no run can work with.
    """
    config = config.copy_and_resolve_references()
    config.stages = tuple(part.strip() for entry in config.stages for part in entry.split(","))
    _check(config)
    return config


def _check(config: ConfigDict) -> None:
    for field in ("student", "data.train"):
        if not _get(config, field):
            raise UserError(f"config.{field} is empty: give it on the command line as --config.{field}=PATH")
    for field, choices in _CHOICES.items():
        if _get(config, field) not in choices:
            raise UserError(f"config.{field} is {_get(config, field)!r}: choose one of {', '.join(choices)}")
    for field, least in _AT_LEAST.items():
        if not _get(config, field) >= least:  # true of NaN too
            raise UserError(f"config.{field} is {_get(config, field)}: it must be at least {least}")
    for field in _POSITIVE:
        if not _get(config, field) > 0:
            raise UserError(f"config.{field} is {_get(config, field)}: it must be above 0")
    for field in ("optimizer.b1", "optimizer.b2"):
        if not 0 <= _get(config, field) < 1:
            raise UserError(f"config.{field} is {_get(config, field)}: it must be at least 0 and below 1")
    if config.evaluation.two_sample_folds == 1:
        raise UserError("config.evaluation.two_sample_folds is 1: give at least 2, or 0 to leave the test out")
    template_args(config)
    _check_stages(config)
    _check_batch(config)


def template_args(config: ConfigDict) -> dict[str, Any]:
    """The chat template's extra arguments from `data.template_args`."""
    text = config.data.template_args
    try:
        arguments = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise UserError(f"config.data.template_args is not JSON ({error}): write it as '{{\"key\": value}}'") from None
    if not isinstance(arguments, dict):
        raise UserError("config.data.template_args must be a JSON object, such as '{\"enable_thinking\": false}'")
    return arguments


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _check_stages(config: ConfigDict) -> None:
    stages = tuple(config.stages)
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
    learned = config.discriminator.init not in ("", "generator") or (
        "warmup" in stages and config.warmup.train_discriminator
    )
    if "gad" in stages and not config.gad.train_discriminator and not learned:
        raise UserError(
            "stage gad has no discriminator: config.gad.train_discriminator is off and nothing trained one; add the "
            "warmup stage, or name an exported one in config.discriminator.init"
        )
    if set(stages) & {"warmup", "gad"} and config.rollout.num_samples < 2:
        raise UserError(
            f"config.rollout.num_samples is {config.rollout.num_samples}: warmup and gad compare samples of the same "
            "prompt and need at least 2"
        )
    if config.discriminator.replay_size and not 0 < config.discriminator.replay_share < 1:
        raise UserError("config.discriminator.replay_share must lie between 0 and 1 when replay_size is set")


def _check_batch(config: ConfigDict) -> None:
    batch, parts = config.batch_size, config.micro_batches
    for field, size in (
        ("micro_batches.generator", parts.generator),
        ("micro_batches.discriminator", parts.discriminator),
    ):
        if batch % size:
            raise UserError(f"config.batch_size {batch} is not divisible by config.{field} {size}")
    pieces = config.gad.ppo_minibatches * parts.generator
    if batch % pieces:
        raise UserError(
            f"config.batch_size {batch} is not divisible by config.gad.ppo_minibatches * "
            f"config.micro_batches.generator = {pieces}"
        )
