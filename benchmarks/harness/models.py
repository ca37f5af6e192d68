"""Writes models of random weights as Hugging Face directories, which both sides load."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax

from benchmarks.harness.peers import CACHE
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model, grow_discriminator
from gadjax.models.save import save_pretrained
from gadjax.models.weights import read_hf_config

FOLDER = CACHE / "models"  # on this machine; they are made again where they are missing
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SMOLLM2 = _LLAMA | {  # SmolLM2-135M
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "vocab_size": 49152,
}
TINY = _LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 1_000_000.0,
    "vocab_size": 640,
}


def small(vocabulary: int) -> dict[str, Any]:
    """The model that is compared with tunix, whose Llama has only this RoPE base."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2}
    return TINY | sizes | {"intermediate_size": 1536, "head_dim": 64, "vocab_size": vocabulary}


def write_models(folder: pathlib.Path, fields: dict[str, Any]) -> dict[str, str]:
    """Writes a generator, a discriminator made from it, and a reference near it, unless they exist.

    Args:
      folder: where a folder for this architecture is made.
      fields: a config.json.

    Returns:
      The directories by "generator", "discriminator" and "reference".
    """
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    place = folder / "-".join(str(fields[name]) for name in sizes)
    directories = {name: place / name for name in ("generator", "discriminator", "reference")}
    if not all(path.exists() and _fields(path, fields) for path in directories.values()):
        config = ModelConfig.from_hf(fields, "the benchmark's model")
        key = jax.random.key(0)
        generator = Model(config).init(key)
        noise = Model(config).init(jax.random.fold_in(key, 1))
        reference = jax.tree.map(lambda a, b: a + 0.1 * b, generator, noise)
        discriminator = grow_discriminator(generator, Model(config, "score").init_head(key))
        written = {"generator": generator, "discriminator": discriminator, "reference": reference}
        for name, params in written.items():
            kind = "discriminator" if name == "discriminator" else "generator"
            save_pretrained(directories[name], params, config, fields, kind=kind)
    return {name: str(path) for name, path in directories.items()}


def _fields(path: pathlib.Path, fields: dict[str, Any]) -> bool:
    """Whether a directory's architecture is the one of a config.json."""
    return read_hf_config(path)[0] == ModelConfig.from_hf(fields, "the benchmark's model")


def read_fields(directory: str) -> dict[str, Any]:
    """A model's config.json."""
    return json.loads((pathlib.Path(directory) / "config.json").read_text())
