r"""Qwen2.5-14B-Instruct with LoRA: generator, discriminator and reference are adapters on one frozen copy.

    python -m gadjax.train --config=configs/qwen14b_lora.py \
        --config.data.train=teacher.parquet --config.data.heldout=heldout.parquet

Hardware: one GPU with 80 GB; docs/plan.md says what each program needs. The paper trains every parameter instead, so
it has no result for this setting, and gadjax has none yet.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """Rank 32, and an eighth of the paper's batch: 32 prompts x 8 samples a step."""
    config = default_config()
    config.student = "Qwen/Qwen2.5-14B-Instruct"
    config.lora.rank = 32
    config.lora.alpha = 64.0
    for stage in (config.warmup, config.gad):
        stage.generator_learning_rate = 2e-5
        stage.discriminator_learning_rate = 2e-5
    config.batch_size = 32
    # Four prompts at a time: 11 GiB of key-value caches, beside the base and the copy of it for sampling.
    config.rollout.slots = 32
    return config
