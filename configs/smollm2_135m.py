r"""SmolLM2-135M-Instruct teaches a depth-pruned copy of itself (12 of its 30 layers, 71 M parameters).

    python benchmarks/prune_layers.py --model=HuggingFaceTB/SmolLM2-135M-Instruct --keep=0-9,28,29 --out=/tmp/pruned
    python -m gadjax.train --config=configs/smollm2_135m.py --config.student=/tmp/pruned \
        --config.data.train=train.parquet --config.data.heldout=heldout.parquet

Hardware: two CPU cores and 8 GB. Steps are small (4 prompts x 4 samples, 64 tokens), so that a run takes about an hour.
docs/results.md has the results of three seeds (40 + 30 steps), and of a student with 24 layers on one GPU. A student as
damaged as this one learns as much from cross entropy alone. The teacher's answers are cut at 64 tokens like the
student's (answers that the API cut are kept), so that length does not tell the two apart. The learning rates are for a
pruned student that has much to relearn; they are not the paper's.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """60 steps of warmup and 40 of GAD."""
    config = default_config()
    config.batch_size = 4
    config.remat = "none"

    config.data.cut_answers = "keep"
    config.data.max_prompt_length = 96
    config.data.max_response_length = 64
    config.rollout.num_samples = 4

    config.warmup.steps = 60
    config.warmup.discriminator_only_steps = 5
    config.warmup.generator_learning_rate = 2e-4
    config.warmup.discriminator_learning_rate = 3e-5
    config.gad.steps = 40
    config.gad.generator_learning_rate = 5e-6
    config.gad.discriminator_learning_rate = 1e-5

    config.eval_every = 20
    config.evaluation.prompts = 32
    config.checkpoint.every = 10
    return config
