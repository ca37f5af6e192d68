"""Reading checkpoints: layouts, dtypes, shards, refusals. Names and shapes are written out by hand."""

from __future__ import annotations

import builtins
import errno
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gadjax.errors import UserError
from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_tensors import HF_TENSORS, HfTensor
from gadjax.models.model import Model
from gadjax.models.weights import (
    load_params,
    named_leaves,
    read_hf_config,
)
from tests.models.written_checkpoints import (
    HF_CONFIG,
    NKV,
    NQ,
    D,
    F,
    H,
    L,
    assert_equal,
    hf_tensors,
    load,
    random_head,
    write,
    write_sharded,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_every_parameter_lies_where_it_belongs(tmp_path):
    tensors = hf_tensors()
    params = load(write(tmp_path, tensors))
    assert len(named_leaves(params)) == len(HF_TENSORS) - 2  # all but the scalar head's

    def same(ours, name, shape):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, tensors[name].T.reshape(shape), err_msg=name)

    np.testing.assert_array_equal(params["embed"]["embedding"], tensors["model.embed_tokens.weight"])
    same(params["final_norm"]["scale"], "model.norm.weight", (H,))
    np.testing.assert_array_equal(params["lm_head"]["embedding"], tensors["lm_head.weight"])
    for i in range(L):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        prefix = f"model.layers.{i}."
        same(layer["input_norm"]["scale"], prefix + "input_layernorm.weight", (H,))
        same(layer["post_attention_norm"]["scale"], prefix + "post_attention_layernorm.weight", (H,))
        attention = layer["attention"]
        for name, heads in (("q", NQ), ("k", NKV), ("v", NKV)):
            same(attention[name]["kernel"], f"{prefix}self_attn.{name}_proj.weight", (H, heads, D))
            same(attention[name]["bias"], f"{prefix}self_attn.{name}_proj.bias", (heads, D))
        same(attention["o"]["kernel"], prefix + "self_attn.o_proj.weight", (NQ, D, H))
        same(attention["o"]["bias"], prefix + "self_attn.o_proj.bias", (H,))
        same(attention["q_norm"]["scale"], prefix + "self_attn.q_norm.weight", (D,))
        same(attention["k_norm"]["scale"], prefix + "self_attn.k_norm.weight", (D,))
        same(layer["mlp"]["gate"]["kernel"], prefix + "mlp.gate_proj.weight", (H, F))
        same(layer["mlp"]["up"]["kernel"], prefix + "mlp.up_proj.weight", (H, F))
        same(layer["mlp"]["down"]["kernel"], prefix + "mlp.down_proj.weight", (F, H))


def test_many_files_hold_what_one_holds(tmp_path):
    tensors = hf_tensors()
    assert_equal(load(write_sharded(tmp_path / "many", tensors)), load(write(tmp_path / "one", tensors)))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_sources_of_other_dtypes_become_float32(tmp_path, dtype):
    tensors = hf_tensors(dtype)
    same_values = {name: value.astype(np.float32) for name, value in tensors.items()}
    assert_equal(load(write(tmp_path / "a", tensors)), load(write(tmp_path / "b", same_values)))


def test_leaves_take_the_dtype_that_is_asked_for(tmp_path):
    config, _ = read_hf_config(write(tmp_path, hf_tensors()))
    abstract = Model(config).abstract_params()
    asked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16"), abstract)
    expected = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), load_params(tmp_path, config, abstract))
    assert_equal(load_params(tmp_path, config, asked), expected)


def test_shards_hold_their_part_and_read_no_more(tmp_path, monkeypatch):
    """On 8 devices, the values are the same, in the asked layout, and each element of the files is read once."""
    tensors = hf_tensors()
    directory = write(tmp_path, tensors)
    whole = load(directory)
    config, _ = read_hf_config(directory)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    model = Model(config)
    rules = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
    shardings = jax.tree.map(
        lambda axes: NamedSharding(mesh, PartitionSpec(*(rules.get(axis) for axis in axes))),
        model.logical_axes(),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        model.abstract_params(),
        shardings,
    )
    read, read_part = [], HfTensor.read

    class Counted:
        def __init__(self, tensor):
            self.tensor = tensor

        def __getitem__(self, index):
            piece = self.tensor[index]
            read.append(piece.size)
            return piece

    monkeypatch.setattr(HfTensor, "read", lambda self, source, *part: read_part(self, Counted(source), *part))
    params = load_params(directory, config, abstract)
    assert_equal(params, whole)
    for name, leaf in named_leaves(params).items():
        assert leaf.sharding == named_leaves(shardings)[name], name
    assert sum(read) == sum(value.size for value in tensors.values())


# Loads a small checkpoint, so that what is loaded once is there, then a large one; prints by how many times the size of
# the parameters the process grew at its largest. With a third argument, reads the whole file first.
MEASURED_LOAD = """
import contextlib, pathlib, sys
import jax, safetensors.numpy
from gadjax.models import weights
from gadjax.models.hf_tensors import HF_TENSORS, HfTensor
from gadjax.models.model import Model

def load(path):
    config, _ = weights.read_hf_config(path)
    return jax.block_until_ready(weights.load_params(path, config, Model(config).abstract_params()))

def kilobytes(name):  # getrusage would include the parent process
    return int(dict(line.split(":", 1) for line in open("/proc/self/status"))[name].split()[0])

small, large = map(pathlib.Path, sys.argv[1:3])
load(small)
before = kilobytes("VmRSS")
if len(sys.argv) > 3:
    held = safetensors.numpy.load_file(large / "model.safetensors")
    weights.Checkpoint.tensors = lambda self: contextlib.nullcontext(held.__getitem__)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(load(large)))
print((kilobytes("VmHWM") - before) * 1024 / size)
"""


def test_no_second_copy_in_host_memory(tmp_path):
    """Of nine parameters of one size, a few stand beside the arrays on the device, never all of them.

    Measured by the system, since neither Python nor JAX knows of all buffers; a loader that reads everything first is
    told from ours.
    """
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("no /proc to measure with")
    fields = {"num_hidden_layers": 16, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 16384}
    fields |= {"num_attention_heads": 128, "num_key_value_heads": 128}
    small = write(tmp_path / "small", hf_tensors())
    large = write(tmp_path / "large", hf_tensors(config=HF_CONFIG | fields), **fields)

    def growth(*arguments: str) -> float:
        command = [sys.executable, "-c", MEASURED_LOAD, small, large, *arguments]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert growth() < 1.7 < 2 < growth("everything first")


def test_tied_checkpoint_with_and_without_a_head(tmp_path):
    tensors = hf_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    twice = load(write(tmp_path / "twice", tensors, tie_word_embeddings=True))
    assert "lm_head" not in twice
    del tensors["lm_head.weight"]
    assert_equal(load(write(tmp_path / "once", tensors, tie_word_embeddings=True)), twice)


def test_tied_checkpoint_with_another_head_is_refused(tmp_path):
    tensors = hf_tensors()
    directory = write(tmp_path, tensors, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head.weight differs .* set tie_word_embeddings to false"):
        load(directory)
    assert "score" in load(directory, "score", missing={"score": random_head()})  # no head is read: nothing to refuse


@pytest.mark.parametrize("tied", [False, True])
def test_discriminator_grows_from_a_causal_language_model(tmp_path, tied):
    tensors = hf_tensors()
    if tied:
        del tensors["lm_head.weight"]
    directory = write(tmp_path, tensors, tie_word_embeddings=tied)
    generator = load(directory)
    generator.pop("lm_head", None)
    head = random_head()
    assert_equal(load(directory, "score", missing={"score": head}), generator | {"score": head})
    with pytest.raises(UserError, match=r"2 of \d+ tensors are missing: score.bias, score.weight"):
        load(directory, "score")


def test_discriminator_of_its_own_export_keeps_its_head(tmp_path):
    tensors = hf_tensors()
    del tensors["lm_head.weight"]
    tensors["score.weight"] = np.arange(H, dtype=np.float32)[None]
    tensors["score.bias"] = np.array([3.0], np.float32)
    directory = write(tmp_path, tensors, architectures=["Qwen3ForTokenClassification"])
    head = load(directory, "score", missing={"score": random_head()})["score"]
    np.testing.assert_array_equal(head["kernel"], tensors["score.weight"].T)
    np.testing.assert_array_equal(head["bias"], tensors["score.bias"])
    del tensors["score.bias"]
    with pytest.raises(UserError, match=r"1 of \d+ tensors are missing: score.bias;"):
        load(write(tmp_path, tensors), "score", missing={"score": random_head()})


def test_missing_tensors_are_counted_and_named(tmp_path):
    tensors = hf_tensors()
    for i in range(L):
        del tensors[f"model.layers.{i}.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=rf"{L} of \d+ tensors are missing: model.layers.0.mlp.up_proj.weight, "):
        load(write(tmp_path, tensors))
    tensors = hf_tensors()
    del tensors["lm_head.weight"]
    with pytest.raises(UserError, match=r"tensors are missing: lm_head.weight;"):
        load(write(tmp_path, tensors))


def test_misshapen_tensor(tmp_path):
    tensors = hf_tensors()
    tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((NKV * D + 1, H), np.float32)
    found, asked = rf"\[{NKV * D + 1}, {H}\]", rf"\[{NKV * D}, {H}\]"
    message = f"tensor model.layers.1.self_attn.k_proj.weight has the shape {found}, but .* asks for {asked}"
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, tensors))


def test_left_over_tensors(tmp_path):
    """Tensors without a place, as query norms in a Llama, mean that the config describes another model."""
    tensors = hf_tensors()
    llama = dict(architectures=["LlamaForCausalLM"], model_type="llama")
    with pytest.raises(UserError, match=r"6 tensors have no place in .*: model.layers.0.self_attn.k_norm.weight"):
        load(write(tmp_path, tensors, **llama))
    with pytest.raises(UserError, match=r"tensors have no place in .*: model.layers.2.input_layernorm.weight"):
        load(write(tmp_path, tensors, num_hidden_layers=2))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(D // 2, np.float32)
    load(write(tmp_path, tensors))


def test_quantised_tensor(tmp_path):
    tensors = hf_tensors()
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((F, H), np.int8)
    with pytest.raises(UserError, match=r"model.layers.0.mlp.up_proj.weight is I8; quantised weights"):
        load(write(tmp_path, tensors))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """It is not called damaged, nor absent, as safetensors calls it."""
    file = write(tmp_path, hf_tensors()) / "model.safetensors"
    before = builtins.open

    def refused(name, *arguments, **options):
        if os.fspath(name) == os.fspath(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return before(name, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refused)  # root may read everything
    with pytest.raises(UserError, match=rf"{file}: cannot be read \(Permission denied\)"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_damaged_file(tmp_path, damage):
    file = write(tmp_path, hf_tensors()) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-100], "header": b"\xff" * 64, "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"{file}: not a complete safetensors file"):
        load(tmp_path)


def test_config_file(tmp_path):
    with pytest.raises(UserError, match=r"config.json: no such file"):
        read_hf_config(tmp_path)
    for content, message in (("{", "not JSON"), ("[]", "not a JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=rf"{tmp_path}/config.json: {message}"):
            read_hf_config(tmp_path)
    write(tmp_path, {})
    config, hf_config = read_hf_config(tmp_path)
    assert isinstance(config, ModelConfig) and hf_config == HF_CONFIG
