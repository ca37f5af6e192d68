"""The `config.json` of the students that gadjax ships configs for, so that planning downloads nothing."""

from __future__ import annotations

from typing import Any

_QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "vocab_size": 128256,
}
_STRETCH = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-3B-Instruct": _QWEN
    | _sizes(2048, 11008, 36, 16)
    | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-7B-Instruct": _QWEN
    | _sizes(3584, 18944, 28, 28)
    | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "Qwen/Qwen2.5-14B-Instruct": _QWEN
    | _sizes(5120, 13824, 48, 40)
    | {"num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False},
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA
    | _sizes(3072, 8192, 28, 24)
    | {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, **_STRETCH}},
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA
    | _sizes(4096, 14336, 32, 32)
    | {"tie_word_embeddings": False, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **_STRETCH}},
}
