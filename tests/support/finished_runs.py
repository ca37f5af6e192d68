"""Fixtures of whole runs: a config of a few small steps, and a run that has finished."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.support.compiling import on_one_device, sharing_programs, without_optimizations

RICH = {
    "gad.schedule": "cosine",
    "gad.rise_steps": 1,
    "warmup.steps": 3,
    "gad.steps": 3,
    "gad.ppo_minibatches": 2,
    "gad.kl_coefficient": 0.1,
    "micro_batches.generator": 2,
    "micro_batches.discriminator": 2,
    "discriminator.updates_per_step": 2,
    "discriminator.replay_size": 24,
    "eval_every": 2,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
    "evaluation.two_sample_folds": 2,
    "evaluation.two_sample_epochs": 1,
    "log.tensorboard": True,
}


@pytest.fixture(scope="session")
def tiny_config(student, train_file, heldout_file) -> Callable[..., Any]:
    """A config of a few small steps from random weights; the argument's dotted fields replace its own."""

    def make(fields: dict[str, Any] | None = None) -> Any:
        from gadjax.config import default_config

        config = default_config().unlock()
        config.student = str(student)
        config.random_init = True
        config.data.train, config.data.heldout = str(train_file), str(heldout_file)
        config.data.max_prompt_length, config.data.max_response_length = 48, 8
        config.batch_size = 8
        config.remat = "none"
        config.rollout.num_samples = 2
        config.rollout.temperature = 1.0
        for stage in (config.seqkd, config.warmup, config.gad):
            stage.steps = 2
            stage.generator_learning_rate = 1e-2
        for stage in (config.warmup, config.gad):
            stage.discriminator_learning_rate = 1e-2
        config.warmup.discriminator_only_steps = 1
        config.eval_every = 0
        config.evaluation.shown = 2
        config.export_dtype = "float32"
        config.log.tensorboard = False
        config.update_from_flattened_dict(fields or {})
        return config.lock()

    return make


class FinishedRun(NamedTuple):
    """A run that reached its end. Tests must leave its workdir as it is."""

    workdir: pathlib.Path
    config: Any
    figures: dict[str, dict[str, float]]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_config) -> FinishedRun:
    """Warmup and GAD with replay, several updates of the discriminator and several minibatches."""
    from gadjax.train import run

    config = tiny_config(RICH)
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with without_optimizations(), on_one_device(), sharing_programs():
        return FinishedRun(workdir, config, run(config, workdir))


@pytest.fixture(scope="session")
def rich_fields() -> dict[str, Any]:
    """The fields of `finished_run`'s config."""
    return dict(RICH)
