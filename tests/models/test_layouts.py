"""Where parameters, moments and sampling weights lie on a mesh of eight devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gadjax.distill.state import adamw
from gadjax.errors import UserError
from gadjax.models import layouts
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model
from gadjax.models.weights import named_leaves
from gadjax.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=1,
    head_dim=6,
    qkv_bias=True,
)


def test_parameters():
    """Embed axes lie over fsdp; heads, feed-forward and vocabulary over tensor; what does not divide is whole."""
    mesh = meshes.make_mesh(1, 4, 2)
    model = Model(CONFIG)
    specs = {name: sharding.spec for name, sharding in named_leaves(layouts.param_shardings(model, mesh)).items()}
    assert set(specs) == set(named_leaves(model.abstract_params()))
    assert specs["embed/embedding"] == P("tensor", "fsdp")
    assert specs["lm_head/embedding"] == P("tensor", "fsdp")
    assert specs["layers/attention/q/kernel"] == P(None, "fsdp", "tensor", None)
    assert specs["layers/attention/k/kernel"] == P(None, "fsdp", None, None)  # one head cannot be split in two
    assert specs["layers/attention/q/bias"] == P(None, "tensor", None)
    assert specs["layers/attention/o/kernel"] == P(None, "tensor", None, "fsdp")
    assert specs["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["final_norm/scale"] == P(None)
    odd = layouts.param_shardings(Model(ModelConfig(**{**CONFIG.__dict__, "hidden_size": 18})), mesh)
    assert named_leaves(odd)["embed/embedding"].spec == P("tensor", None)


def test_abstract_parameters_carry_the_layout():
    mesh = meshes.make_mesh(1, 4, 2)
    model = Model(CONFIG)
    plain = named_leaves(model.abstract_params())
    shardings = named_leaves(layouts.param_shardings(model, mesh))
    for dtype, expected in ((None, "float32"), ("bfloat16", "bfloat16")):
        leaves = named_leaves(layouts.abstract_params(model, mesh, dtype))
        assert leaves.keys() == plain.keys()
        for name, leaf in leaves.items():
            assert (leaf.shape, leaf.dtype, leaf.sharding) == (plain[name].shape, expected, shardings[name]), name


def test_every_sharding_can_hold_its_parameter():
    for sizes in ((1, 8, 1), (2, 2, 2), (1, 1, 8)):
        mesh = meshes.make_mesh(*sizes)
        for head in ("lm", "score"):
            model = Model(CONFIG, head)
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.abstract_params())
            placed = jax.device_put(zeros, layouts.param_shardings(model, mesh))
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), placed, zeros)


def test_moments_lie_with_their_parameters():
    mesh = meshes.make_mesh(1, 4, 2)
    model = Model(CONFIG)
    optimizer = adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)
    shardings = layouts.optimizer_shardings(optimizer, model, mesh)
    state = jax.eval_shape(optimizer.init, model.abstract_params())
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    params = named_leaves(layouts.param_shardings(model, mesh))
    moments = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), sharding)
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    ]
    for name, sharding in params.items():
        assert [s.spec for path, s in moments if path.endswith(name)] == [sharding.spec] * 2
    assert sum(sharding.spec == P() for _, sharding in moments) >= 1  # the counter


def big(**fields):
    """A model of Qwen2.5-14B's sizes."""
    sizes = dict(vocab_size=152064, hidden_size=5120, intermediate_size=13824, num_layers=48, num_heads=40)
    sizes |= dict(num_kv_heads=8, head_dim=128, dtype="bfloat16")
    return Model(dataclasses.replace(CONFIG, **sizes | fields))


@pytest.mark.parametrize(
    ("sizes", "tensor", "expected"),
    [
        ((1, 8, 1), 2, (1, 4, 2)),
        ((2, 4, 1), 4, (2, 1, 4)),
        ((2, 2, 2), 4, (2, 1, 4)),
        ((1, 4, 2), 0, (1, 4, 2)),
    ],
)
def test_the_mesh_of_sampling(sizes, tensor, expected):
    """Neighbours share a weight, and the devices keep their order."""
    mesh = meshes.make_mesh(*sizes)
    found = layouts.decoding_mesh(Model(CONFIG), mesh, tensor)
    assert tuple(found.shape.values()) == expected
    assert list(found.devices.flat) == list(mesh.devices.flat)


def test_the_mesh_of_sampling_leaves_four_gibibytes_of_weights():
    """Eight devices share 14.8 billion parameters of two bytes. A small model is whole, and no head is cut."""
    mesh = meshes.make_mesh(1, 8, 1)
    assert layouts.decoding_mesh(big(), mesh, 0).shape["tensor"] == 8
    assert layouts.decoding_mesh(big(num_layers=8), mesh, 0).shape["tensor"] == 2
    assert layouts.decoding_mesh(Model(CONFIG), mesh, 0).shape["tensor"] == 1
    few_heads = dataclasses.replace(big().config, num_kv_heads=2)
    assert layouts.decoding_mesh(Model(few_heads), mesh, 0).shape["tensor"] == 2


@pytest.mark.parametrize("tensor", [3, 16])
def test_a_mesh_of_sampling_that_does_not_fit(tensor):
    with pytest.raises(
        UserError, match=rf"decode_tensor {tensor} does not fit mesh.fsdp 4 x mesh.tensor 2: use one of 2, 4, 8"
    ):
        layouts.decoding_mesh(Model(CONFIG), meshes.make_mesh(1, 4, 2), tensor)


@pytest.mark.parametrize(
    ("sizes", "fields", "message"),
    [
        ((1, 1, 8), {}, r"M has 4 attention heads, which config.mesh.tensor 8 does not divide: use one of 1, 2, 4"),
        ((1, 4, 2), {"vocab_size": 41}, r"M has 41 embeddings \(vocab_size\), which config.mesh.tensor 2"),
        ((1, 4, 2), {"intermediate_size": 25}, r"M has 25 feed-forward channels, which .* use one of 1"),
        ((1, 8, 1), {"hidden_size": 20}, r"M has a hidden size of 20, which config.mesh.fsdp 8 .* use one of 1, 2, 4"),
    ],
)
def test_sizes_that_do_not_divide(sizes, fields, message):
    with pytest.raises(UserError, match=message):
        layouts.check_divides(Model(dataclasses.replace(CONFIG, **fields)), meshes.make_mesh(*sizes), "M")
