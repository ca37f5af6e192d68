"""Options of the discriminator and of the rewards that do not fit each other: the message names the field."""

from __future__ import annotations

import pytest

from gadjax.config.check import resolve
from gadjax.errors import UserError

pytestmark = pytest.mark.quick

LIKELIHOOD = {"discriminator.kind": "likelihood"}
TAUGHT = {**LIKELIHOOD, "stages": ("seqkd", "gad"), "seqkd.train_discriminator": True}

EQUAL_RATES = {"seqkd.generator_learning_rate": 1e-3, "seqkd.discriminator_learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": ("seqkd", "gad"), "seqkd.train_discriminator": True}, "seqkd.train_discriminator.*kind=likelihood"),
        ({**TAUGHT, "stages": ("seqkd", "soda", "gad")}, "seqkd.train_discriminator.*soda"),
        ({**TAUGHT, **EQUAL_RATES}, "seqkd.train_discriminator.*twin"),
        ({"discriminator.random_init": True}, "discriminator.random_init.*names no folder"),
        (
            {
                **LIKELIHOOD,
                "stages": ("gad",),
                "discriminator.init": "folder",
                "discriminator.random_init": True,
                "gad.train_discriminator": False,
            },
            "discriminator.random_init.*no stage trains",
        ),
        ({**LIKELIHOOD, "stages": ("seqkd", "gad")}, "kind=likelihood has learned nothing"),
        ({"discriminator.loss": "ce", "discriminator.bt_temperature": 2.0}, "discriminator.bt_temperature.*loss=bt"),
        ({"gad.discount": 2.0}, "gad.discount is 2.0: it must be at least 0.* and at most 1"),
        ({"discriminator.beta": 0.5}, "discriminator.beta is 0.5.*kind=likelihood.*leave config.discriminator.beta at"),
        ({"discriminator.baseline": "reference"}, "discriminator.baseline.*kind=likelihood"),
        ({"discriminator.sft_coefficient": 1.0}, "discriminator.sft_coefficient.*kind=likelihood"),
        ({**LIKELIHOOD, "discriminator.pooling": "mean"}, "discriminator.pooling.*kind=score"),
        ({"gad.reward_baseline": "reference"}, "gad.reward_baseline.*kind=likelihood"),
        ({"gad.discount": 0.5}, "gad.discount.*credit=token"),
        ({"gad.credit": "token", "gad.reward": "bounded"}, "gad.reward is bounded.*credit=sequence"),
        ({"gad.credit": "token", "gad.length_correction": True}, "gad.length_correction.*credit=sequence"),
        (
            {"stages": ("seqkd",), "seqkd.steps": 0, "seqkd.schedule": "cosine"},
            "seqkd.schedule is cosine.*set config.seqkd.steps",
        ),
        (
            {"warmup.steps": 20, "warmup.discriminator_only_steps": 10, "warmup.rise_steps": 10},
            "warmup.rise_steps is 10.*has 10 steps that train the generator, after 10 that don.t: lower it",
        ),
        ({"gad.steps": 5, "gad.rise_steps": 5}, "gad.rise_steps is 5.*raise config.gad.steps"),
        ({"gad.demonstration_steps": 5}, "gad.demonstration_steps.*gad.demonstrations is 0"),
        ({**LIKELIHOOD, "gad.reward_baseline": "reference"}, "gad.reward_baseline=reference needs"),
        (
            {**LIKELIHOOD, "discriminator.baseline": "reference", "gad.reward": "bounded"},
            "gad.reward_baseline is policy and config.discriminator.baseline is reference",
        ),
        *(
            (
                {"gad.demonstrations": 0.5, "gad.demonstration_reward": 0.0, field: value},
                rf"{field} is {value}.*demonstration_reward=0",
            )
            for field, value in (
                ("gad.credit", "token"),
                ("gad.whitening", "batch"),
                ("gad.length_correction", True),
            )
        ),
        ({"evaluation.coverage": "a (\\w+"}, "evaluation.coverage.*no regular expression"),
        ({"evaluation.coverage": "word"}, "evaluation.coverage.*no group"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_config, fields, message):
    with pytest.raises(UserError, match=message):
        resolve(tiny_config(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {**TAUGHT, "seqkd.discriminator_learning_rate": 1e-3},
        {**TAUGHT, "discriminator.init": "folder"},
        {**LIKELIHOOD, "gad.credit": "token", "gad.discount": 0.9, "gad.whitening": "running", "gad.reward_clip": 4.0},
        {**LIKELIHOOD, "discriminator.baseline": "reference", "gad.reward_baseline": "reference"},
        {"gad.reward": "bounded", "gad.length_correction": True, "gad.demonstrations": 0.3},
        {"stages": ("soda",), "soda.steps": 2},
        {"gad.credit": "token", "discriminator.pooling": "mean"},
    ],
)
def test_what_fits_is_taken(tiny_config, fields):
    assert resolve(tiny_config(fields)).stages
