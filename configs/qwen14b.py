r"""Qwen2.5-14B-Instruct: the paper's settings (arXiv 2511.10643, Table 2).

    python -m gadjax.train --config=configs/qwen14b.py \
        --config.data.train=teacher.parquet --config.data.heldout=heldout.parquet

Hardware: 16 GPUs with 80 GB (the paper's took about 30 hours), or v5p:2x4x4; docs/plan.md says what each program needs.
The paper's result, GPT-4o score on LMSYS: 50.0 before, 50.6 with SeqKD, 52.1 with GAD.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """One epoch of warmup and two of GAD, 256 prompts x 8 samples a step."""
    config = default_config()
    config.student = "Qwen/Qwen2.5-14B-Instruct"
    config.rollout.slots = 1024
    return config
