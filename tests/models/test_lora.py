"""Adapters in the decoder: what they compute, how they start, and how a tree is split and joined."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models import layouts, lora
from gadjax.models.architecture import Lora, ModelConfig
from gadjax.models.model import Model, cast_params
from gadjax.models.weights import named_leaves
from gadjax.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures("quick_compile")

PLAIN = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    qkv_bias=True,
    initializer_range=0.3,
)
CONFIG = dataclasses.replace(PLAIN, lora=Lora(rank=3, alpha=4.5))
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 7)).astype(np.int32)
FIELDS = TOKENS, np.broadcast_to(np.arange(7), (2, 7)), np.ones_like(TOKENS)
PROJECTIONS = {f"layers/attention/{name}" for name in "qkvo"} | {
    f"layers/mlp/{name}" for name in ("gate", "up", "down")
}


def random_params(model: Model):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), model.abstract_params())


@pytest.fixture(scope="module")
def initial():
    return jax.jit(Model(CONFIG, "score").init)(jax.random.key(0))


def folded(params):
    """The whole tree, with adapters merged into its kernels by numpy in float64."""
    if "lora_a" in params:
        a, b = (np.asarray(params[name], np.float64) for name in lora.ADAPTERS)
        product = np.stack([np.tensordot(a[i], b[i], 1) for i in range(len(a))])
        params = {name: leaf for name, leaf in params.items() if name not in lora.ADAPTERS}
        return params | {"kernel": np.float32(params["kernel"] + CONFIG.lora.scale * product)}
    return {name: folded(node) if isinstance(node, dict) else node for name, node in params.items()}


@pytest.mark.parametrize("head", ["lm", "score"])
def test_forward_is_that_of_merged_weights(head):
    model, plain = Model(CONFIG, head), Model(PLAIN, head)
    params = random_params(model)
    run = {"lm": Model.logits, "score": Model.scores}[head]
    measured = jax.jit(lambda params: run(model, params, *FIELDS))(params)
    expected = jax.jit(lambda params: run(plain, params, *FIELDS))(folded(params))
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-4)
    bare = jax.jit(lambda params: run(plain, params, *FIELDS))(lora.frozen(params) | lora_head(params))
    assert np.abs(measured - bare).max() > 0.1


def lora_head(params):
    return {name: params[name] for name in ("score",) if name in params}


def test_fresh_adapters_change_nothing(initial):
    model, plain = Model(CONFIG, "score"), Model(PLAIN, "score")
    measured = jax.jit(lambda params: model.scores(params, *FIELDS))(initial)
    expected = jax.jit(lambda params: plain.scores(params, *FIELDS))(lora.frozen(initial) | lora_head(initial))
    np.testing.assert_array_equal(measured, expected)
    assert np.abs(measured).max() > 0


def test_adapters_start_as_peft_starts_them(initial):
    """A is uniform within 1 / sqrt(inputs), and different in every layer and projection; B is zero."""
    leaves = named_leaves(lora.trained(initial))
    assert leaves.keys() == {f"{p}/{name}" for p in PROJECTIONS for name in lora.ADAPTERS} | {
        "score/kernel",
        "score/bias",
    }
    for projection in PROJECTIONS:
        a, b = (np.asarray(leaves[f"{projection}/{name}"]) for name in lora.ADAPTERS)
        bound = np.prod(a.shape[1:-1]) ** -0.5
        assert 0.8 * bound < np.abs(a).max() <= bound and abs(a.mean()) < 0.3 * bound, projection
        assert np.abs(a[0] - a[1]).max() > 0.1 * bound, projection
        assert (b == 0).all() and (a.dtype, b.dtype) == (np.float32, np.float32), projection
    assert leaves["layers/attention/o/lora_a"].shape == (2, 4, 6, 3)
    assert leaves["layers/attention/q/lora_b"].shape == (2, 3, 4, 6)
    assert np.abs(leaves["layers/mlp/gate/lora_a"] - leaves["layers/mlp/up/lora_a"]).max() > 0.1


@pytest.mark.parametrize("head", ["lm", "score"])
def test_a_tree_falls_into_base_and_trained(head):
    whole = Model(CONFIG, head).abstract_params()
    base, own = lora.frozen(whole), lora.trained(whole)
    assert not named_leaves(base).keys() & named_leaves(own).keys()
    assert lora.join(base, own) == whole
    plain = Model(PLAIN, head).abstract_params()
    assert (lora.frozen(plain), lora.trained(plain)) == (None, plain)
    assert lora.join(None, plain) is plain
    assert set(named_leaves(base)) == {name for name in named_leaves(plain) if not name.startswith("score/")}


def test_a_discriminator_stands_on_the_generator_s_base():
    whole = Model(CONFIG, "score").abstract_params()
    assert lora.join(lora.frozen(Model(CONFIG).abstract_params()), lora.trained(whole)) == whole


def test_layers_for_decoding_hold_merged_weights():
    """Folded kernels are rounded once, to their own dtype; on CPUs, their outputs come first."""
    model = Model(dataclasses.replace(CONFIG, dtype="bfloat16"))
    params = cast_params(random_params(model), "bfloat16")

    def kernels(params):
        layers = model.bind(params).unstacked_layers()
        return [(layer.attention.o.kernel[...], layer.mlp.up.kernel[...]) for layer in layers]

    expected = folded(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params))["layers"]
    for i, (o, up) in enumerate(jax.jit(kernels)(params)):
        assert o.dtype == jnp.bfloat16
        for measured, merged in ((o, expected["attention"]["o"]), (up, expected["mlp"]["up"])):
            turned = np.moveaxis(merged["kernel"][i], -1, 0)
            np.testing.assert_allclose(np.float32(measured), turned, rtol=2**-8, atol=1e-3)


def test_layout():
    """Adapters have the kernel's layout, and are whole along the rank."""
    mesh = meshes.make_mesh(2, 2, 2)
    specs = {n: tuple(s.spec) for n, s in named_leaves(layouts.param_shardings(Model(CONFIG, mesh=mesh), mesh)).items()}
    assert specs["layers/attention/q/lora_a"] == (None, "fsdp", None)
    assert specs["layers/attention/q/lora_b"] == (None, None, "tensor", None)
    assert specs["layers/mlp/down/lora_a"] == (None, "tensor", None)
    assert specs["layers/mlp/down/lora_b"] == (None, None, "fsdp")
