"""Checkpoints of random values, and what reading them gives."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy

from gadjax.models.model import Model
from gadjax.models.weights import (
    load_params,
    named_leaves,
    read_hf_config,
)

V, H, F, L, NQ, NKV, D = 40, 16, 24, 3, 4, 2, 8
HF_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": NQ,
    "num_key_value_heads": NKV,
    "head_dim": D,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "attention_bias": True,  # so that Qwen3 has every kind of parameter
    "tie_word_embeddings": False,
}


def hf_tensors(dtype=np.float32, config=HF_CONFIG) -> dict[str, np.ndarray]:
    """A whole checkpoint of random values."""
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    all_heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    all_heads["v"] = all_heads["k"]
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, heads in all_heads.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (heads * D, hidden)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (heads * D,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, all_heads["q"] * D)
        shapes[layer + "self_attn.o_proj.bias"] = (hidden,)
        shapes[layer + "self_attn.q_norm.weight"] = (D,)
        shapes[layer + "self_attn.k_norm.weight"] = (D,)
        shapes[layer + "mlp.gate_proj.weight"] = (mlp, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (mlp, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, mlp)
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(directory: pathlib.Path, tensors: dict[str, np.ndarray], **fields) -> pathlib.Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(HF_CONFIG | fields))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return directory


def write_sharded(directory: pathlib.Path, tensors: dict[str, np.ndarray], count: int = 3) -> pathlib.Path:
    write(directory, tensors)
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % count}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        safetensors.numpy.save_file(part, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def load(directory: pathlib.Path, head: str = "lm", **kwargs):
    config, _ = read_hf_config(directory)
    return load_params(directory, config, Model(config, head).abstract_params(), **kwargs)


def assert_equal(left, right):
    left, right = named_leaves(left), named_leaves(right)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def random_head() -> dict[str, np.ndarray]:
    return {"kernel": np.full((H, 1), 0.25, np.float32), "bias": np.full((1,), 0.5, np.float32)}
