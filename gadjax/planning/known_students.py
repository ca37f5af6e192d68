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
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
_SIZES: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_SIZES += ("vocab_size", "tie_word_embeddings")


def _sized(family: dict[str, Any], *sizes: int) -> dict[str, Any]:
    return family | dict(zip(_SIZES, sizes, strict=True))


def _llama(factor: float, *sizes: int) -> dict[str, Any]:
    stretch = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return _sized(_LLAMA, *sizes) | {"rope_scaling": {"rope_type": "llama3", "factor": factor, **stretch}}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-3B-Instruct": _sized(_QWEN, 2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": _sized(_QWEN, 3584, 18944, 28, 28, 4, 152064, False),
    "Qwen/Qwen2.5-14B-Instruct": _sized(_QWEN, 5120, 13824, 48, 40, 8, 152064, False),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(32.0, 3072, 8192, 28, 24, 8, 128256, True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(8.0, 4096, 14336, 32, 32, 8, 128256, False),
}
