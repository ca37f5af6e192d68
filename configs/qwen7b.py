r"""Qwen2.5-7B-Instruct: the paper's settings (arXiv 2511.10643, Table 2).

    python -m gadjax.train --config=configs/qwen7b.py \
        --config.data.train=teacher.parquet --config.data.heldout=heldout.parquet

Hardware: 8 GPUs with 80 GB; docs/plan.md says what each program needs. The time was not measured.
The paper's result, GPT-4o score on LMSYS: 48.7 before, 49.2 with SeqKD, 50.8 with GAD.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """One epoch of warmup and two of GAD, 256 prompts x 8 samples a step."""
    config = default_config()
    config.student = "Qwen/Qwen2.5-7B-Instruct"
    config.rollout.slots = 1024
    return config
