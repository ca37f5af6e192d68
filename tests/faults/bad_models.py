"""Bad directories of models and tokenizers, and bad workdirs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy

from tests.faults.bad_input import BadInput, Place

DEEP = "[" * 100_000


def student(name: str, message: str, **spoilt: Any) -> BadInput:
    """Training a student whose directory is spoilt; see `Place.model`."""
    return BadInput(name, message, lambda p: p.run(student=p.model(**spoilt)))


def config(name: str, message: str, *taken: str, **fields: Any) -> BadInput:
    """Training a student whose config.json has other fields, or lacks some."""

    def change(found: dict[str, Any]) -> None:
        found |= fields
        for field in taken:
            del found[field]

    return student(name, r"bad_model.*" + message, config=change)


def tensors(name: str, message: str, change: Callable[[dict[str, np.ndarray]], Any]) -> BadInput:
    """Training a student whose weights were changed."""

    def spoil(p: Place) -> list[str]:
        file = p.model(weights=True) / "model.safetensors"
        found = safetensors.numpy.load_file(file)
        change(found)
        safetensors.numpy.save_file(found, file)
        return p.run(student=file.parent, random_init=False)

    return BadInput(name, message, spoil)


def files(name: str, message: str, change: Callable[[pathlib.Path], Any]) -> BadInput:
    """Training a student with weights whose directory was changed."""

    def spoil(p: Place) -> list[str]:
        directory = p.model(weights=True)
        change(directory)
        return p.run(student=directory, random_init=False)

    return BadInput(name, message, spoil)


def _cut(directory: pathlib.Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _index(content: str) -> Callable[[pathlib.Path], None]:
    def change(directory: pathlib.Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(content)

    return change


def _folder_for(name: str) -> Callable[[pathlib.Path], None]:
    def change(directory: pathlib.Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return change


def _workdir(p: Place, **contents: str) -> list[str]:
    (p.folder / "run").mkdir()
    for name, content in contents.items():
        p.file(f"run/{name}.json", content)
    return p.command("export")


def _other_tokenizer(p: Place) -> list[str]:
    """A discriminator that has one more token than the student."""
    other = p.model(weights=True)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"content": "<|new|>", "id": 300})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    return p.run(discriminator__init=other)


def _no_template(p: Place) -> list[str]:
    return p.run(student=p.model(chat_template__jinja=None))


_SHAPES = {"weight_map": {"model.norm.weight": "absent.safetensors"}}

MODELS = [
    BadInput(
        "no directory",
        "/nowhere/model: no such directory; give a Hugging Face directory",
        lambda p: p.run(student="/nowhere/model"),
    ),
    BadInput(
        "an id that the hub does not have",
        "no-one/none: no such directory, and the hub did not",
        lambda p: p.run(student="no-one/none"),
    ),
    BadInput(
        "a file instead of its directory",
        "config.json: a file; give the directory that it lies in",
        lambda p: p.run(student=p.student / "config.json"),
    ),
    student("no config.json", r"bad_model/config\.json: no such file; a model's directory holds", config__json=None),
    student(
        "a config.json cut",
        r"bad_model/config\.json: not JSON \(.*\); fetch it again",
        config__json='{"hidden_size": 3',
    ),
    student("a config.json that nests too deep", r"config\.json: not JSON \(nested too deep\)", config__json=DEEP),
    student(
        "a config.json with a number of 5000 digits",
        r"config\.json: not JSON \(Exceeds",
        config__json='{"a": ' + "1" * 5000 + "}",
    ),
    student("a config.json of bytes", r"config\.json: not JSON \('utf-8' codec", config__json=b"\xff\xfe{}"),
    student("a config.json that is a list", r"config\.json: not a JSON object; fetch it again", config__json="[]"),
    files(
        "a folder called config.json", r"config\.json: cannot be read \(Is a directory\)", _folder_for("config.json")
    ),
    config(
        "another architecture",
        "architecture GPT2LMHeadModel is not supported; supported are",
        architectures=["GPT2LMHeadModel"],
    ),
    config("no architecture", r"architectures is \[\]; it must name one of Llama", architectures=[]),
    config(
        "a model_type of another family",
        "model_type 'qwen2' does not belong to the architecture Llama",
        model_type="qwen2",
    ),
    config(
        "code in the folder",
        "auto_map asks for trust_remote_code; code from a checkpoint is never run",
        auto_map={"AutoModel": "m.M"},
    ),
    config(
        "quantised weights",
        "quantization_config: quantised weights are not supported; take",
        quantization_config={"bits": 4},
    ),
    config("a field missing", "field hidden_size is missing", "hidden_size"),
    config("a field of text", "hidden_size is 'wide'; it must be an integer of at least 1", hidden_size="wide"),
    config("layers that are true", "num_hidden_layers is True; it must be an integer", num_hidden_layers=True),
    config(
        "more layers than any model",
        r"num_hidden_layers is 1000000000; it must be an integer of at most",
        num_hidden_layers=10**9,
    ),
    config(
        "more channels than memory has bytes", r"hidden_size is 1000000000000000000000; it must be", hidden_size=10**21
    ),
    config(
        "heads that do not divide",
        "num_attention_heads 4 is not divisible by num_key_value_heads 3",
        num_key_value_heads=3,
    ),
    config("an odd head", "head_dim 7 is odd; rotary positions need pairs", head_dim=7),
    config("another activation", "hidden_act 'gelu' is not supported; only 'silu' is", hidden_act="gelu"),
    config("biases in the MLP", "mlp_bias is true; feed-forward layers with biases", mlp_bias=True),
    config("an epsilon below 0", "rms_norm_eps is -1; it must be a number above 0", rms_norm_eps=-1),
    config("an infinite epsilon", "rms_norm_eps is inf; it must be a finite number", rms_norm_eps=float("inf")),
    config(
        "another rope", "rope_scaling has the type 'ntk', which is not supported", rope_scaling={"rope_type": "ntk"}
    ),
    config("a rope without a factor", "field factor is missing", rope_scaling={"rope_type": "yarn"}),
    config("a rope that is text", "rope_scaling is 'x'; it must be an object", rope_scaling="x"),
    config(
        "a rope whose type is a list",
        r"rope_scaling has the type \['linear'\], which",
        rope_scaling={"rope_type": ["linear"]},
    ),
    config(
        "half a rope", "partial_rotary_factor is 0.5; this architecture turns all channels", partial_rotary_factor=0.5
    ),
    config(
        "a rope of reversed factors",
        "low_freq_factor 4.0, which must be below",
        rope_scaling={"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1},
    ),
    config("ties that are text", "tie_word_embeddings is 'no'; it must be true or false", tie_word_embeddings="no"),
    config(
        "a context shorter than the run",
        r"max_position_embeddings is 24, but sequences may reach",
        max_position_embeddings=24,
    ),
    config("fewer embeddings than tokens", r"has 100 embeddings but its tokenizer \d+ tokens", vocab_size=100),
    files(
        "no weights",
        "bad_model: no weights; a checkpoint holds model.safetensors",
        lambda d: (d / "model.safetensors").unlink(),
    ),
    files(
        "pickled weights",
        r"the weights are pickled only \(pytorch_model\.bin\), and unpickling may run code; convert them",
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
    ),
    files("weights cut", r"model\.safetensors: not a complete safetensors file \(.*\); fetch it again", _cut),
    files(
        "weights of no bytes",
        r"safetensors: not a complete safetensors file",
        lambda d: (d / "model.safetensors").write_bytes(b""),
    ),
    files(
        "a header that lies about its length",
        r"not a complete safetensors file",
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 99),
    ),
    files(
        "a folder called model.safetensors",
        r"model\.safetensors: cannot be read \(Is a directory\)",
        _folder_for("model.safetensors"),
    ),
    files("an index that is not JSON", r"index\.json: not JSON", _index("{")),
    files("an index of nothing", r"index\.json: weight_map is missing or empty", _index("{}")),
    files(
        "an index with a number for a file",
        r"index\.json: weight_map has 3 for a, not a file's name",
        _index('{"weight_map": {"a": 3}}'),
    ),
    files(
        "an index of files that are not there",
        r"names absent\.safetensors, which is not there; fetch",
        _index(json.dumps(_SHAPES)),
    ),
    tensors(
        "a tensor missing",
        r"1 of \d+ tensors are missing: model\.norm\.weight; the weights are incomplete",
        lambda t: t.pop("model.norm.weight"),
    ),
    tensors(
        "a tensor of another shape",
        r"tensor model\.norm\.weight has the shape \[33\], but",
        lambda t: t.update({"model.norm.weight": np.zeros(33, np.float32)}),
    ),
    tensors(
        "a tensor of integers",
        r"tensor model\.norm\.weight is I8; quantised weights",
        lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}),
    ),
    tensors(
        "a tensor too many",
        "1 tensors have no place in the model",
        lambda t: t.update({"model.layers.9.x": np.zeros(3, np.float32)}),
    ),
    student("no tokenizer", r"bad_model: no tokenizer there \(none of", tokenizer__json=None),
    student(
        "a tokenizer cut",
        "bad_model: transformers cannot load this tokenizer",
        tokenizer__json='{"version": "1.0", "model": {',
    ),
    student(
        "a tokenizer of another form",
        "bad_model: transformers cannot load this tokenizer",
        tokenizer__json='{"model": {"type": "Magic"}}',
    ),
    student(
        "code beside the tokenizer",
        r"tokenizer_config\.json: auto_map asks for trust_remote_code",
        tokenizer=lambda t: t.update(auto_map={"AutoTokenizer": [None, "t.T"]}),
    ),
    BadInput(
        "no chat template",
        "the tokenizer has no chat template .*put one beside it as chat_template.jinja",
        _no_template,
    ),
    student(
        "a template that is not Jinja",
        "the chat template of .*bad_model refused a chat",
        chat_template__jinja="{% for m in messages %}",
    ),
    student(
        "a template that fails",
        "refused a chat: 'undefined_thing' is undefined",
        chat_template__jinja="{{ undefined_thing.x }}",
    ),
    student(
        "a template that is a number",
        "chat_template is 3; expected|transformers cannot load",
        chat_template__jinja=None,
        tokenizer=lambda t: t.update(chat_template=3),
    ),
    student(
        "a template that never ends", "refused a chat: ", chat_template__jinja="{% for i in range(10**9) %}{% endfor %}"
    ),
    student(
        "an end of turn that is a word",
        r"generation_config\.json: `eos_token_id` cannot be read",
        generation_config__json='{"eos_token_id": "stop"}',
    ),
    student(
        "an end of turn below 0",
        r"generation_config\.json: `eos_token_id` .*-1",
        generation_config__json='{"eos_token_id": [2, -1]}',
    ),
    student(
        "an end of turn beyond any token",
        r"generation_config\.json: `eos_token_id` holds 4294967296, which no",
        generation_config__json='{"eos_token_id": 4294967296}',
    ),
    student(
        "an infinite end of turn",
        r"generation_config\.json: `eos_token_id` cannot be read",
        generation_config__json='{"eos_token_id": Infinity}',
    ),
    BadInput(
        "a discriminator with another tokenizer",
        "has another tokenizer than the student .* choose a checkpoint of the same",
        _other_tokenizer,
    ),
    BadInput(
        "a discriminator that is not there",
        "/nowhere/d: no such directory",
        lambda p: p.run(discriminator__init="/nowhere/d"),
    ),
    BadInput(
        "a language model as discriminator, without its generator",
        "is a causal language model, whose score compares it with the generator: give --generator=DIR",
        lambda p: p.command("score"),
    ),
    BadInput(
        "a template's file that is not there",
        "neither a Jinja template nor a file with one",
        lambda p: p.run(data__chat_template="absent.jinja"),
    ),
    BadInput("no workdir", "is not the workdir of a run: no config.json", lambda p: p.command("export")),
    BadInput("no run.json", "is not the workdir of a run: no run.json", lambda p: _workdir(p, config="{}")),
    BadInput(
        "a workdir's config cut", r"config\.json or run\.json is damaged", lambda p: _workdir(p, config="{", run="{}")
    ),
    BadInput("a workdir without checkpoints", "has no checkpoint yet", lambda p: _workdir(p, config="{}", run="{}")),
]
