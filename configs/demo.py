"""A student of 2.7 M parameters, from random weights, learns to write one-sentence answers from SmolLM2-135M-Instruct.

    python -m gadjax.train --config=configs/demo.py --workdir=/tmp/demo

Hardware: two CPU cores, 3 GB; about five minutes. Everything lies in configs/demo_assets, whose README says how it
was made. Result: README, "The demo"; the last stage takes the held-out negative log-likelihood from 2.74 to 2.62.
SeqKD teaches the language fast (no sampling); warmup lets the discriminator catch up with the student; then GAD.
"""

import pathlib

from ml_collections import ConfigDict

from configs import base

ASSETS = pathlib.Path(__file__).parent / "demo_assets"


def get_config() -> ConfigDict:
    """SeqKD, warmup and GAD in about 5 minutes on two cores."""
    config = base.get_config()
    config.student = str(ASSETS)
    config.random_init = True
    config.stages = ("seqkd", "warmup", "gad")
    config.batch_size = 16
    config.remat = "none"

    config.data.train = str(ASSETS / "train.parquet")
    config.data.heldout = str(ASSETS / "heldout.parquet")
    config.data.max_prompt_length = 64
    config.data.max_response_length = 64
    config.row_length = 128
    config.rollout.num_samples = 4
    config.rollout.temperature = 1.0
    config.optimizer.clip_norm = 1.0

    # Random weights give a discriminator nothing to start from; the generator after SeqKD does.
    config.discriminator.init = "generator"

    config.seqkd.steps = 400
    config.seqkd.generator_learning_rate = 1e-3
    config.warmup.steps = 25
    config.warmup.train_generator = False
    config.warmup.discriminator_learning_rate = 5e-4
    config.gad.steps = 60
    config.gad.generator_learning_rate = 3e-4
    # Without the teacher's answers beside it, the reward of so weak a discriminator leads astray.
    config.gad.sft_coefficient = 1.0
    config.gad.discriminator_learning_rate = 3e-4

    config.eval_every = 200
    config.evaluation.prompts = 128
    config.evaluation.two_sample_folds = 2
    config.evaluation.two_sample_epochs = 5
    config.evaluation.two_sample_learning_rate = 1e-3
    config.checkpoint.every = 200
    config.checkpoint.keep = 4  # every one of this run, for gadjax.export
    return config
