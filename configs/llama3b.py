r"""Llama-3.2-3B-Instruct: the paper's settings (arXiv 2511.10643, Table 2).

    python -m gadjax.train --config=configs/llama3b.py \
        --config.data.train=teacher.parquet --config.data.heldout=heldout.parquet

Hardware: one GPU with 80 GB (the optimizers' moments and idle networks wait in the host's memory);
docs/plan.md says what each program needs. The time was not measured.
The paper's result, GPT-4o score on LMSYS: 44.0 before, 47.6 with SeqKD, 48.1 with GAD.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """One epoch of warmup and two of GAD, 256 prompts x 8 samples a step."""
    config = default_config()
    config.student = "meta-llama/Llama-3.2-3B-Instruct"
    config.rollout.slots = 64
    config.offload.optimizer = True
    config.offload.networks = True
    return config
