"""The contents of an export, and that it is never half written. `tests/parity` loads exports in transformers."""

from __future__ import annotations

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gadjax.errors import UserError
from gadjax.models import save
from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_files import pooling_of
from gadjax.models.model import Model
from gadjax.models.save import save_pretrained
from gadjax.models.weights import load_params, named_leaves, read_hf_config

pytestmark = pytest.mark.usefixtures("quick_compile")

HF_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float16",
    "transformers_version": "4.40.0",
    "tie_word_embeddings": True,
}
CONFIG = ModelConfig.from_hf(HF_CONFIG, "config.json")


def random_params(head: str, seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    shapes = Model(CONFIG, head).abstract_params()
    return jax.tree.map(lambda leaf: jax.numpy.asarray(random.normal(size=leaf.shape), leaf.dtype), shapes)


def assert_equal(left: dict, right: dict) -> None:
    left, right = named_leaves(left), named_leaves(right)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def load(directory: pathlib.Path, head: str) -> dict:
    config, _ = read_hf_config(directory)
    return load_params(directory, config, Model(config, head).abstract_params())


def tree(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("kind", "head"), [("generator", "lm"), ("discriminator", "score")])
def test_what_is_written_is_read_back(tmp_path, kind, head):
    params = random_params(head)
    save_pretrained(tmp_path / "a" / "b", params, CONFIG, HF_CONFIG, kind=kind)
    assert_equal(load(tmp_path / "a" / "b", head), params)
    config, _ = read_hf_config(tmp_path / "a" / "b")
    assert config == CONFIG


def test_the_directory_of_a_generator(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    save_pretrained(
        tmp_path / "out",
        random_params("lm"),
        CONFIG,
        HF_CONFIG | {"id2label": {"0": "x"}, "num_labels": 1},
        kind="generator",
        tokenizer_dir=tokenizer,
        generation_config={"eos_token_id": [1, 2]},
        model_card="# Student\n",
    )
    files = tree(tmp_path / "out")
    assert files.keys() == {
        "config.json",
        "gadjax.json",
        "generation_config.json",
        "README.md",
        "tokenizer.json",
        "chat_template.jinja",
        "model.safetensors",
    }
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [1, 2]}
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out" / "gadjax.json").stat().st_mode & 0o777}  # of the umask
    assert files["README.md"] == b"# Student\n"
    assert json.loads(files["config.json"]) == HF_CONFIG | {"dtype": "float32", "torch_dtype": "float32"}
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as handle:
        assert handle.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in handle.keys()  # noqa: SIM118 (a handle is no mapping)


def test_the_config_says_how_values_become_a_score(tmp_path):
    """Nothing stands for the last token, as in exports of earlier versions."""
    for pooling in ("last", "mean"):
        out = tmp_path / pooling
        source = HF_CONFIG | {"gadjax_pooling": "mean"}
        save_pretrained(out, random_params("score"), CONFIG, source, kind="discriminator", pooling=pooling)
        config = json.loads((out / "config.json").read_text())
        assert config.get("gadjax_pooling", "last") == pooling == pooling_of(config, "config.json")
    save_pretrained(tmp_path / "lm", random_params("lm"), CONFIG, source, kind="generator", pooling="mean")
    assert "gadjax_pooling" not in json.loads((tmp_path / "lm" / "config.json").read_text())


def test_the_config_of_a_discriminator(tmp_path):
    generation = {"eos_token_id": 1}
    args = (random_params("score"), CONFIG, HF_CONFIG)
    save_pretrained(tmp_path / "out", *args, kind="discriminator", generation_config=generation)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForTokenClassification"]
    assert (config["num_labels"], config["classifier_dropout"]) == (1, 0.0)
    assert len(config["id2label"]) == len(config["label2id"]) == 1
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_the_wrong_kind_is_a_programming_error(tmp_path):
    with pytest.raises(ValueError, match="not the parameters of a generator"):
        save_pretrained(tmp_path / "out", random_params("score"), CONFIG, HF_CONFIG, kind="generator")


def test_files_keep_to_the_limit_and_the_index_names_every_tensor(tmp_path):
    params, limit = random_params("lm"), 6_000
    save_pretrained(tmp_path / "out", params, CONFIG, HF_CONFIG, kind="generator", max_shard_bytes=limit)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    total = 0
    for file in files:
        tensors = safetensors.numpy.load_file(file)
        size = sum(value.nbytes for value in tensors.values())
        assert size <= limit
        assert all(index["weight_map"][name] == file.name for name in tensors)
        total += size
    assert index["metadata"]["total_size"] == total == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert_equal(load(tmp_path / "out", "lm"), params)


def test_bfloat16(tmp_path):
    params = random_params("lm")
    save_pretrained(tmp_path / "out", params, CONFIG, HF_CONFIG, kind="generator", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), params)
    assert_equal(load(tmp_path / "out", "lm"), rounded)


def test_parameters_spread_over_devices_export_the_same(tmp_path):
    params = random_params("lm")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    specs = {"layers/mlp/gate/kernel": (None, "fsdp", "tensor"), "layers/attention/q/kernel": (None, "fsdp", "tensor")}
    specs |= {"embed/embedding": ("tensor", "fsdp"), "layers/attention/o/kernel": (None, "tensor", None, "fsdp")}
    leaves = [
        jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*specs.get(name, ()))))
        for name, leaf in named_leaves(params).items()
    ]
    spread = jax.tree.unflatten(jax.tree.structure(params), leaves)
    save_pretrained(tmp_path / "one", params, CONFIG, HF_CONFIG, kind="generator", max_shard_bytes=6_000)
    save_pretrained(tmp_path / "many", spread, CONFIG, HF_CONFIG, kind="generator", max_shard_bytes=6_000)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


def test_an_earlier_export_is_replaced_whole(tmp_path):
    first, second = random_params("lm", 0), random_params("lm", 1)
    out = tmp_path / "out"
    save_pretrained(out, first, CONFIG, HF_CONFIG, kind="generator", max_shard_bytes=6_000, model_card="first")
    save_pretrained(out, second, CONFIG, HF_CONFIG, kind="generator")
    assert tree(out).keys() == {
        "config.json",
        "gadjax.json",
        "model.safetensors",
    }  # nothing is left of the first
    assert_equal(load(out, "lm"), second)
    assert list(tmp_path.iterdir()) == [out]


class Crash(BaseException):
    """Stands for a kill: no handler may catch it."""


def crash_in_call(number: int, function):
    calls = []

    def crashing(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise Crash
        return function(*args, **kwargs)

    return crashing


@pytest.mark.parametrize("where", ["second weights file", "config", "first rename"])
def test_a_crash_leaves_the_earlier_export_or_none(tmp_path, monkeypatch, where):
    target, name, number = {
        "second weights file": (safetensors.numpy, "save_file", 2),
        "config": (save, "_write_json", 1),
        "first rename": (save.os, "rename", 1),
    }[where]
    args, options = (CONFIG, HF_CONFIG), dict(kind="generator", max_shard_bytes=6_000)
    out = tmp_path / "out"
    for earlier in (None, random_params("lm", 0)):
        if earlier is not None:
            save_pretrained(out, earlier, *args, **options)
        with monkeypatch.context() as patch:
            patch.setattr(target, name, crash_in_call(number, getattr(target, name)))
            with pytest.raises(Crash):
                save_pretrained(out, random_params("lm", 1), *args, **options)
        if earlier is None:
            assert not out.exists()
        else:
            assert_equal(load(out, "lm"), earlier)
        save_pretrained(out, random_params("lm", 2), *args, **options)  # what the crash left does not matter
        assert_equal(load(out, "lm"), random_params("lm", 2))
        assert list(tmp_path.iterdir()) == [out]


def test_a_crash_between_the_renames_keeps_the_earlier_export_beside(tmp_path, monkeypatch):
    first, out = random_params("lm", 0), tmp_path / "out"
    save_pretrained(out, first, CONFIG, HF_CONFIG, kind="generator")
    with monkeypatch.context() as patch:
        patch.setattr(save.os, "rename", crash_in_call(2, save.os.rename))
        with pytest.raises(Crash):
            save_pretrained(out, random_params("lm", 1), CONFIG, HF_CONFIG, kind="generator")
    assert not out.exists()
    assert_equal(load(tmp_path / ".out.old", "lm"), first)


def test_other_peoples_directories_are_not_replaced(tmp_path):
    params, out = random_params("lm"), tmp_path / "out"
    out.mkdir()
    save_pretrained(out, params, CONFIG, HF_CONFIG, kind="generator")  # an empty directory is fine
    other = tmp_path / "student"
    other.mkdir()
    safetensors.numpy.save_file({"a": np.zeros(3)}, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_text(json.dumps(HF_CONFIG))
    file = tmp_path / "file"
    file.write_text("mine")
    before = tree(tmp_path)
    for path in (other, file):
        with pytest.raises(UserError, match=f"{path}: exists and is not an export of gadjax"):
            save_pretrained(path, params, CONFIG, HF_CONFIG, kind="generator")
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the export cannot be written .* choose another place"):
        save_pretrained(tmp_path / "file" / "out", random_params("lm"), CONFIG, HF_CONFIG, kind="generator")
