"""Fixtures that write a small student: its config.json, a tokenizer, and weights where a test needs them."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.teachers import WORDS

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def hf_config() -> Callable[..., dict[str, Any]]:
    """The config.json of a small untied Llama; the arguments replace its fields."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 320,  # more rows than the tokenizer has ids, as Qwen's
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    return lambda **fields: config | fields


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[pathlib.Path, list[str]], None]:
    """Writes a byte-level BPE tokenizer, trained on a few words, with a ChatML template."""

    def write(directory: pathlib.Path, words: list[str]) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
        )
        backend.train_from_iterator([" ".join(words)] * 4, trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
        ).save_pretrained(directory)

    return write


@pytest.fixture(scope="session")
def student(tmp_path_factory, hf_config, write_tokenizer) -> pathlib.Path:
    """A student's directory without weights: config.json and a tokenizer."""
    directory = tmp_path_factory.mktemp("student")
    write_tokenizer(directory, [*WORDS, "user", "assistant", "system", "What", "is", "plus"])
    (directory / "config.json").write_text(json.dumps(hf_config()))
    return directory


@pytest.fixture(scope="session")
def small_student(tmp_path_factory, student, hf_config) -> pathlib.Path:
    """The student with one layer: its runs compile sooner."""
    directory = shutil.copytree(student, tmp_path_factory.mktemp("small") / "student")
    (directory / "config.json").write_text(json.dumps(hf_config(num_hidden_layers=1)))
    return directory


@pytest.fixture(scope="session")
def other_student(student, add_weights, tmp_path_factory) -> pathlib.Path:
    """A causal language model of the student's architecture and tokenizer, with weights that nothing trained."""
    directory = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(student, directory)
    return add_weights(directory)


@pytest.fixture
def misfits(other_student, write_tokenizer, tmp_path) -> dict[str, pathlib.Path]:
    """Copies of `other_student` that do not go with the student: of another tokenizer, and with room for few tokens."""
    found = {name: tmp_path / name for name in ("other", "short")}
    for copy in found.values():
        shutil.copytree(other_student, copy)
    write_tokenizer(found["other"], ["quite", "other", "words"])
    config = json.loads((found["short"] / "config.json").read_text())
    (found["short"] / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    return found


@pytest.fixture(scope="session")
def add_weights(tmp_path_factory) -> Callable[[pathlib.Path], pathlib.Path]:
    """Puts weights of small values beside a config.json, those of a causal language model."""
    import jax
    import numpy as np

    from gadjax.models.model import Model
    from gadjax.models.save import save_pretrained
    from gadjax.models.weights import read_hf_config

    def add(directory: pathlib.Path) -> pathlib.Path:
        config, hf_config = read_hf_config(directory)
        rng = np.random.default_rng(0)
        random = lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
        params = jax.tree.map(random, Model(config).abstract_params())
        exported = tmp_path_factory.mktemp("weights") / "export"
        save_pretrained(exported, params, config, hf_config, kind="generator")
        shutil.copy(exported / "model.safetensors", directory)
        return directory

    return add
