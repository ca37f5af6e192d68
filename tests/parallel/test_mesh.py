"""The mesh over eight devices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.errors import UserError
from gadjax.parallel import mesh as meshes

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, 1, 1), (8, 1, 1)),
    ],
)
def test_sizes(sizes, expected):
    mesh = meshes.make_mesh(*sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert tuple(mesh.shape.values()) == expected
    assert meshes.batch_shards(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, -1, 1), r"'data': 3.* does not cover the 8 devices.*product is 8"),
        ((1, 1, 1), "does not cover the 8 devices"),
        ((4, 4, 1), "does not cover the 8 devices"),
        ((-1, -1, 1), "one of them may be -1"),
        ((0, -1, 1), "mesh sizes are at least 1"),
        ((1, -2, 1), "mesh sizes are at least 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        meshes.make_mesh(*sizes)


def test_some_devices():
    mesh = meshes.make_mesh(1, -1, 2, jax.devices()[:4])
    assert tuple(mesh.shape.values()) == (1, 2, 2)


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a TPU from which JAX lays a mesh on the torus."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v6 lite"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 64])
def test_any_part_of_a_torus_can_be_the_tensor_axis(tensor):
    """On 8 x 8 chips, a tensor axis of four is half of a physical axis, and its chips are neighbours."""
    chips = [Chip(x + 8 * y, (x, y, 0)) for y in range(8) for x in range(8)]
    mesh = meshes.make_mesh(1, -1, tensor, chips)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 64 // tensor, "tensor": tensor}
    assert set(mesh.devices.flat) == set(chips)
    if tensor <= 8:
        for row in mesh.devices.reshape(-1, tensor):
            spread = np.ptp([chip.coords for chip in row], axis=0)
            assert sorted(spread.tolist()) == [0, 0, tensor - 1], "in one line"


def test_rows():
    mesh = meshes.make_mesh(2, 2, 2)
    rows = jax.device_put(np.arange(24).reshape(8, 3), meshes.rows(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    micro = jax.device_put(np.zeros((3, 8, 2)), meshes.rows(mesh, leading=1))
    assert {shard.data.shape for shard in micro.addressable_shards} == {(3, 2, 2)}
    assert jax.device_put(np.zeros(5), meshes.replicated(mesh)).is_fully_replicated


def test_a_gathered_weight_is_the_weight_and_so_is_its_gradient():
    mesh = meshes.make_mesh(1, 4, 2)
    weight = jax.random.normal(jax.random.key(0), (16, 24))
    split = jax.device_put(weight, NamedSharding(mesh, P("fsdp", "tensor")))
    loss = lambda w, mesh: jnp.sum(meshes.gather_weight(w, mesh, ("embed", "mlp")) ** 3)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(split, mesh)
    expected, of_whole = jax.value_and_grad(loss)(weight, None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, of_whole, rtol=1e-6)
    assert gradient.sharding == split.sharding
