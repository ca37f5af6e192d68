r"""Qwen2.5-3B-Instruct: the paper's settings (arXiv 2511.10643, Table 2).

    python -m gadjax.train --config=configs/qwen3b.py \
        --config.data.train=teacher.parquet --config.data.heldout=heldout.parquet

Hardware: one GPU with 80 GB (the optimizers' moments and idle networks wait in the host's memory), or v6e:2x2;
docs/plan.md says what each program needs. The time was not measured.
The paper's result, GPT-4o score on LMSYS: 45.8 before, 47.5 with SeqKD, 48.9 with GAD.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """One epoch of warmup and two of GAD, 256 prompts x 8 samples a step."""
    config = default_config()
    config.student = "Qwen/Qwen2.5-3B-Instruct"
    config.rollout.slots = 128
    config.offload.optimizer = True
    config.offload.networks = True
    return config
