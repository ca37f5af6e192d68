"""The decoder as pure functions of a tree of parameters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_tensors import HF_TENSORS
from gadjax.models.model import Model, cast_params, grow_discriminator, resolve_dtype
from gadjax.models.weights import named_leaves

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    initializer_range=0.3,
)
EVERYTHING = dataclasses.replace(CONFIG, qkv_bias=True, output_bias=True, qk_norm=True)


@pytest.mark.parametrize("head", ["lm", "score"])
def test_init(head):
    model = Model(EVERYTHING, head)
    params = jax.jit(model.init)(jax.random.key(0))
    abstract = named_leaves(model.abstract_params())
    leaves = named_leaves(params)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in abstract.items()
    }
    for name, leaf in leaves.items():
        leaf = np.asarray(leaf)
        if name.endswith("scale"):
            assert (leaf == 1).all(), name
        elif name.endswith("bias"):
            assert (leaf == 0).all(), name
        else:
            std = 0.02 if name.startswith("score") else 0.3
            assert leaf.std() == pytest.approx(std, rel=0.5 if leaf.size < 50 else 0.2), name
            assert abs(leaf.mean()) < std, name
    layers = np.asarray(leaves["layers/mlp/gate/kernel"])
    assert np.abs(layers[0] - layers[1]).max() > 0.1  # layers differ


def test_keys_decide():
    init = jax.jit(Model(EVERYTHING).init)
    first, again, other = (init(jax.random.key(seed))["embed"]["embedding"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_tree():
    params = Model(EVERYTHING).abstract_params()
    assert set(params) == {"embed", "layers", "final_norm", "lm_head"}
    layers = params["layers"]
    assert layers["attention"]["q"]["kernel"].shape == (2, 16, 4, 6)
    assert layers["attention"]["k"]["bias"].shape == (2, 2, 6)
    assert layers["attention"]["o"]["kernel"].shape == (2, 4, 6, 16)
    assert layers["attention"]["q_norm"]["scale"].shape == (2, 6)
    assert layers["mlp"]["down"]["kernel"].shape == (2, 24, 16)
    assert params["embed"]["embedding"].shape == (40, 16)
    assert params["lm_head"]["embedding"].shape == (40, 16)
    assert set(named_leaves(params)) | set(named_leaves(Model(EVERYTHING, "score").abstract_params())) == set(
        HF_TENSORS
    )


@pytest.mark.parametrize("head", ["lm", "score"])
def test_logical_axes(head):
    model = Model(EVERYTHING, head)
    axes = model.logical_axes()
    leaves = named_leaves(model.abstract_params())
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): names
        for path, names in jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda node: isinstance(node, tuple))
    }
    assert set(named) == set(leaves)
    for name, leaf in leaves.items():
        assert len(named[name]) == leaf.ndim, name
        assert (named[name][0] == "layers") == name.startswith("layers/"), name
    assert named["layers/attention/k/kernel"] == ("layers", "embed", "kv_heads", "head_dim")
    assert named["embed/embedding"] == ("vocab", "embed")


def test_num_params():
    model = Model(CONFIG)
    per_layer = 16 * 4 * 6 * 2 + 16 * 2 * 6 * 2 + 3 * 16 * 24 + 2 * 16
    assert model.num_params() == 2 * 40 * 16 + 2 * per_layer + 16


def test_a_model_is_a_static_argument():
    """Equal models compile once."""
    traces = []

    def count(model, x):
        traces.append(model)
        return x

    counted = jax.jit(count, static_argnums=0)
    counted(Model(CONFIG), 1.0)
    counted(Model(dataclasses.replace(CONFIG)), 1.0)
    counted(Model(CONFIG, "score"), 1.0)
    assert len(traces) == 2


def test_bind_leaves_the_tree_alone():
    model = Model(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    logits = jax.jit(model.logits)
    copy = jax.tree.map(np.asarray, params)
    tokens = np.zeros((1, 3), np.int32)
    fields = tokens, np.arange(3)[None], np.ones_like(tokens)
    once = logits(params, *fields)
    doubled = logits(jax.tree.map(lambda leaf: 2 * leaf, params), *fields)
    assert np.abs(once - doubled).max() > 1e-3
    np.testing.assert_array_equal(logits(params, *fields), once)
    jax.tree.map(np.testing.assert_array_equal, params, copy)


def test_grown_discriminator():
    """The backbone is copied, so that each network can be donated alone; the head is new, and the old one is gone."""
    model = Model(CONFIG, "score")
    generator = jax.jit(Model(CONFIG).init)(jax.random.key(0))
    head = model.init_head(jax.random.key(1))
    grown = grow_discriminator(generator, head)
    assert jax.tree.structure(grown) == jax.tree.structure(model.abstract_params())
    for name in ("embed", "layers", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, grown[name], generator[name])
    jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), donate_argnums=0)(grown)
    assert float(jnp.abs(generator["embed"]["embedding"]).sum()) > 0  # not donated along
    assert head["kernel"].shape == (16, 1) and (np.asarray(head["bias"]) == 0).all()


def test_head_is_small():
    wide = Model(dataclasses.replace(CONFIG, hidden_size=4096), "score")
    kernel = np.asarray(wide.init_head(jax.random.key(0))["kernel"])
    assert kernel.std() == pytest.approx(0.02, rel=0.05)


def test_dtypes(monkeypatch):
    """The dtype "auto" follows the backend, and a cast to the leaves' own dtype copies nothing."""
    assert [resolve_dtype(name) for name in ("auto", "float32", "bfloat16")] == ["float32", "float32", "bfloat16"]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert [resolve_dtype(name) for name in ("auto", "float32", "bfloat16")] == ["bfloat16", "float32", "bfloat16"]
    params = {"a": jnp.ones(3), "b": {"c": jnp.zeros(2)}}
    assert cast_params(params, "float32")["a"] is params["a"]
    assert {leaf.dtype for leaf in jax.tree.leaves(cast_params(params, "bfloat16"))} == {jnp.dtype("bfloat16")}
