"""Small random models of transformers, ours with the same weights, and how their gradients are compared."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

from gadjax.models.model import Model
from gadjax.models.weights import load_params, named_leaves, read_hf_config

LOGITS_TOLERANCE = 2e-4
LENGTHS = (29, 7, 1, 16)

# The smallest model that can tell a mistake: three layers, and no two sizes alike.
SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 500.0}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}
VARIANTS = {
    "llama-mha": ("Llama", dict(num_key_value_heads=4, rope_parameters=DEFAULT_ROPE)),
    "llama-gqa-tied-linear": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LINEAR_ROPE)),
    "llama-mqa-bias-llama3": (
        "Llama",
        dict(num_key_value_heads=1, attention_bias=True, head_dim=22, rope_parameters=LLAMA3_ROPE),
    ),
    "llama-3.2": ("Llama", dict(tie_word_embeddings=True, head_dim=16, rope_parameters=LLAMA3_ROPE)),
    "qwen2": ("Qwen2", dict(rope_parameters=DEFAULT_ROPE)),
    "qwen2-tied": (
        "Qwen2",
        dict(tie_word_embeddings=True, num_key_value_heads=1, rope_parameters=DEFAULT_ROPE),
    ),
    "qwen3": ("Qwen3", dict(head_dim=12, rope_parameters=DEFAULT_ROPE)),
    "qwen3-tied-bias-linear": (
        "Qwen3",
        dict(head_dim=6, tie_word_embeddings=True, attention_bias=True, rope_parameters=LINEAR_ROPE),
    ),
    "mistral": ("Mistral", dict(sliding_window=None, rope_parameters=DEFAULT_ROPE)),
    "mistral-head_dim-tied": (
        "Mistral",
        dict(sliding_window=5, head_dim=14, tie_word_embeddings=True, rope_parameters=LINEAR_ROPE),
    ),
    "llama-yarn": ("Llama", dict(rope_parameters=YARN_ROPE)),
    "qwen2-dynamic": ("Qwen2", dict(rope_parameters=DYNAMIC_ROPE)),
    "qwen2-windows": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=6, max_window_layers=1, rope_parameters=DEFAULT_ROPE),
    ),
    "smollm3-windows": (
        "SmolLM3",
        dict(no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=6, rope_parameters=DEFAULT_ROPE),
    ),
    "phi3-window": ("Phi3", dict(sliding_window=6, rope_parameters=DEFAULT_ROPE)),
    "olmo2": ("Olmo2", dict(rope_parameters=DEFAULT_ROPE)),
    "olmo2-tied-bias": (
        "Olmo2",
        dict(tie_word_embeddings=True, attention_bias=True, num_key_value_heads=4, rope_parameters=DEFAULT_ROPE),
    ),
    "olmo3": (
        "Olmo3",
        dict(
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"full_attention": YARN_ROPE, "sliding_attention": DEFAULT_ROPE},
        ),
    ),
    "gemma3": (
        "Gemma3",
        dict(
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=5,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": LINEAR_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
    ),
    "phi3": ("Phi3", dict(rope_parameters=DEFAULT_ROPE)),
    "phi4-mini": (
        "Phi3",
        dict(
            tie_word_embeddings=True,
            partial_rotary_factor=0.75,
            original_max_position_embeddings=32,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "short_factor": [1.0, 1.1, 1.5],
                "long_factor": [1.0, 2.0, 3.0],
            },
        ),
    ),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2, rope_parameters=DEFAULT_ROPE)),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}  # where it is not the family's name


def reference(variant: str, task: str = "CausalLM", seed: int = 0) -> Any:
    """A transformers model in evaluation mode, every parameter random."""
    family, options = VARIANTS[variant]
    labels = {"num_labels": 1, "classifier_dropout": 0.0} if task == "TokenClassification" else {}
    config = CONFIGS.get(family, f"{family}Config")
    config = getattr(transformers, config)(**SMALL | options | labels)
    kind = classifier(family) if labels else getattr(transformers, f"{family}For{task}")
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


def classifier(family: str) -> Any:
    """The family's ForTokenClassification: transformers' own, or its generic one where it has none of the family."""
    name = f"{family}ForTokenClassification"
    if found := getattr(transformers, name, None):
        return found
    from transformers.modeling_layers import GenericForTokenClassification

    base = getattr(transformers, f"{family}PreTrainedModel")
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))
    return type(name, (GenericForTokenClassification, base), {"__module__": base.__module__, "config_class": config})


def batch(vocab_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, T], random in the padding too, and the mask [B, T] of those that count."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (len(LENGTHS), max(LENGTHS)))
    return tokens.astype(np.int32), np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def positions_of(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def torch_outputs(model: Any, tokens: np.ndarray, mask: np.ndarray) -> Any:
    """transformers' logits [B, T, V], or scores as [B, T, 1]."""
    ids, attend = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    return model(input_ids=ids, attention_mask=attend, use_cache=False).logits


def load(directory: pathlib.Path, head: str = "lm") -> tuple[Model, dict[str, Any], dict[str, Any]]:
    config, hf_config = read_hf_config(directory)
    model = Model(config, head)
    return model, load_params(directory, config, model.abstract_params()), hf_config


def torch_gradients(model: Any, directory: pathlib.Path, like: Model) -> dict[str, np.ndarray]:
    """The gradients that autograd left in a transformers model, in gadjax's tree."""
    gradients = {name: p.grad.contiguous() for name, p in model.named_parameters()}
    directory.mkdir()
    safetensors.torch.save_file(gradients, directory / "model.safetensors")
    return load_params(directory, like.config, like.abstract_params())


def assert_same_gradients(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = np.abs(theirs[name]).max()
        assert scale > 0, f"{name}: autograd's gradient is zero, which compares nothing"
        np.testing.assert_allclose(gradient, theirs[name], rtol=2e-3, atol=1e-4 * scale, err_msg=name)
