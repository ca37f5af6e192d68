"""Checks that the options of the discriminator and of the rewards fit each other."""

from __future__ import annotations

from ml_collections import ConfigDict

from gadjax.config.fields import FIELDS
from gadjax.errors import UserError

_OWN = ("", "generator")  # values of discriminator.init that name no checkpoint

# Fields that are read with a certain value of another field alone: (field, the other field, its value).
_READ_WITH = (
    ("discriminator.beta", "discriminator.kind", "likelihood"),
    ("discriminator.baseline", "discriminator.kind", "likelihood"),
    ("discriminator.sft_coefficient", "discriminator.kind", "likelihood"),
    ("discriminator.pooling", "discriminator.kind", "score"),
    ("discriminator.bt_temperature", "discriminator.loss", "bt"),
    ("gad.reward_baseline", "discriminator.kind", "likelihood"),
    ("gad.discount", "gad.credit", "token"),
    ("gad.length_correction", "gad.credit", "sequence"),
    ("gad.reward", "gad.credit", "sequence"),
)


def check_discriminator(config: ConfigDict) -> None:
    """Checks what only one kind of discriminator can do, and where its weights come from.

    Raises:
      UserError: naming the field and the remedy.
    """
    section, taught = config.discriminator, "seqkd" in config.stages and config.seqkd.train_discriminator
    if taught and section.kind == "score":
        raise UserError(
            "config.seqkd.train_discriminator is on, but a scalar head has no cross entropy on answers: set "
            "config.discriminator.kind=likelihood, or leave it off"
        )
    if taught and "soda" in config.stages:
        raise UserError(
            "config.seqkd.train_discriminator is on, but stage soda, which follows, keeps no discriminator: leave one "
            "of them out"
        )
    equal = config.seqkd.discriminator_learning_rate == config.seqkd.generator_learning_rate
    if taught and section.init in _OWN and equal:
        raise UserError(
            "config.seqkd.train_discriminator is on, and the discriminator would be the generator's twin: it starts "
            "from the same weights and sees the same answers at the same learning rate. Give it another checkpoint "
            "(config.discriminator.init) or learning rate"
        )
    if section.random_init and section.init in _OWN:
        raise UserError(
            "config.discriminator.random_init is on, but config.discriminator.init names no folder: give one with the "
            "config.json of the discriminator"
        )
    warms = "warmup" in config.stages and config.warmup.train_discriminator
    if section.kind == "likelihood" and section.init in _OWN and "gad" in config.stages and not (taught or warms):
        raise UserError(
            "config.discriminator.kind=likelihood has learned nothing when stage gad begins: name a fitted checkpoint "
            "in config.discriminator.init, or teach it in stage seqkd (config.seqkd.train_discriminator) or warmup"
        )
    trains = (stage for stage in config.stages if config[stage].get("train_discriminator"))
    if section.random_init and not any(trains):
        raise UserError(
            "config.discriminator.random_init is on, but no stage trains the discriminator: set "
            "config.gad.train_discriminator=True, or leave it off"
        )


def check_schedules(config: ConfigDict) -> None:
    """Checks that a stage is as long as its learning rates need.

    Raises:
      UserError: naming the field and the remedy.
    """
    for stage in config.stages:
        section = config[stage]
        if section.schedule != "constant" and not section.steps:
            raise UserError(
                f"config.{stage}.schedule is {section.schedule}, but the stage's length is given in epochs: set "
                f"config.{stage}.steps, or leave the schedule at constant"
            )
        waits = steps_without_generator(config, stage)
        if section.steps and section.rise_steps >= max(section.steps - waits, 1):
            whose = f" that train the generator, after {waits} that don't" if waits else ""
            raise UserError(
                f"config.{stage}.rise_steps is {section.rise_steps}, but the stage has {section.steps - waits} steps"
                f"{whose}: lower it, or raise config.{stage}.steps"
            )


def steps_without_generator(config: ConfigDict, stage: str) -> int:
    """Steps at the stage's start that train the discriminator alone, where the stage trains the generator later."""
    section = config[stage]
    waits = stage == "warmup" and section.train_generator and section.train_discriminator
    return section.discriminator_only_steps if waits else 0


def check_rewards(config: ConfigDict) -> None:
    """Checks that options are set only with those that read them, and that what is compared has one unit.

    Raises:
      UserError: naming the field and the remedy.
    """
    gad = config.gad
    for field, other, wanted in _READ_WITH:
        value, default = _value(config, field), FIELDS[field].default
        if value != default and _value(config, other) != wanted:
            raise UserError(
                f"config.{field} is {value}, but it is only read with config.{other}={wanted}: set that, or leave "
                f"config.{field} at {default}"
            )
    if gad.demonstration_steps and not gad.demonstrations:
        raise UserError(
            f"config.gad.demonstration_steps is {gad.demonstration_steps}, but config.gad.demonstrations is 0: give a "
            "share, or leave it at 0"
        )
    if gad.reward_baseline == "reference" and config.discriminator.baseline == "policy":
        raise UserError(
            "config.gad.reward_baseline=reference needs config.discriminator.baseline=reference, which computes those "
            "log-probs: set both, or leave both at policy"
        )
    if gad.demonstrations and not gad.demonstration_reward:
        _check_own_score(config)
    bounded = gad.reward == "bounded" and config.discriminator.kind == "likelihood"
    if bounded and gad.reward_baseline != config.discriminator.baseline:
        raise UserError(_two_baselines(config))


def _check_own_score(config: ConfigDict) -> None:
    """Checks that the teacher's answer can be a member of its prompt's group."""
    gad, why = config.gad, "makes the teacher's answer a member of its prompt's group"
    for field, wanted in (("credit", "sequence"), ("whitening", "group"), ("length_correction", False)):
        if gad[field] != wanted:
            raise UserError(
                f"config.gad.{field} is {gad[field]}, but config.gad.demonstration_reward=0 {why}: set "
                f"config.gad.{field}={wanted}, or give a reward above 0"
            )
    if config.discriminator.kind == "likelihood" and gad.reward_baseline != config.discriminator.baseline:
        raise UserError(_two_baselines(config))


def _two_baselines(config: ConfigDict) -> str:
    return (
        f"config.gad.reward_baseline is {config.gad.reward_baseline} and config.discriminator.baseline is "
        f"{config.discriminator.baseline}, but the rewards are compared with the teacher's score: give both one value"
    )


def _value(config: ConfigDict, field: str) -> object:
    section, _, name = field.partition(".")
    return config[section][name]
