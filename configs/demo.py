"""A student of 2.7 M random parameters learns to write one-sentence answers from SmolLM2-135M-Instruct.

    python -m gadjax.train --config=configs/demo.py --workdir=/tmp/demo

Hardware: two CPU cores and 3 GB; the run takes 5 to 13 minutes, by machine. Data and student are in
configs/demo_assets, whose README says how they were made.

SeqKD teaches the language quickly, since it samples nothing. Warmup lets the discriminator catch up with the student.
GAD then lowers the held-out negative log-likelihood from 2.73 to 2.62 nats per token (README, "The demo").
"""

from ml_collections import ConfigDict

from gadjax.config import default_config
from gadjax.config.shipped import demo_assets


def get_config() -> ConfigDict:
    """SeqKD, warmup and GAD in a few minutes on two cores."""
    assets = demo_assets()
    config = default_config()
    config.student = str(assets)
    config.random_init = True
    config.stages = ("seqkd", "warmup", "gad")
    config.batch_size = 16
    config.remat = "none"

    config.data.train = str(assets / "train.parquet")
    config.data.heldout = str(assets / "heldout.parquet")
    config.data.max_prompt_length = 64
    config.data.max_response_length = 64
    config.row_length = 128
    config.rollout.num_samples = 4
    config.rollout.temperature = 1.0
    config.optimizer.clip_norm = 1.0

    # Random weights are no start for a discriminator; the generator after SeqKD is one.
    config.discriminator.init = "generator"

    config.seqkd.steps = 400
    config.seqkd.generator_learning_rate = 1e-3
    config.warmup.steps = 25
    config.warmup.train_generator = False
    config.warmup.discriminator_learning_rate = 5e-4
    config.gad.steps = 60
    config.gad.generator_learning_rate = 3e-4
    # The reward of so small a discriminator leads astray unless the teacher's answers are learned from as well.
    config.gad.sft_coefficient = 1.0
    config.gad.discriminator_learning_rate = 3e-4

    config.eval_every = 200
    config.evaluation.prompts = 128
    config.evaluation.coverage = r"about an? (\w+) (\w+) .* (\w+)\."  # the adjective, the animal and the place
    config.evaluation.two_sample_folds = 2
    config.evaluation.two_sample_epochs = 5
    config.evaluation.two_sample_learning_rate = 1e-3
    config.checkpoint.every = 200
    config.checkpoint.keep = 4  # all checkpoints of this run, for gadjax.export
    return config
