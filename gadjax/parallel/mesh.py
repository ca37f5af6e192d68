"""The device mesh, and which part of each array lives where."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

Rules = Mapping[str, str | tuple[str, ...]]  # logical axis -> mesh axes; axes that are not named are whole everywhere

TENSOR_PARALLEL = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
# Parameters and optimizer state while training: each device holds a slice, gathered layer by layer.
TRAINING_RULES: Rules = {**TENSOR_PARALLEL, "embed": "fsdp"}
# Parameters while decoding: every token reads all of them, so nothing is left to gather.
DECODING_RULES: Rules = TENSOR_PARALLEL
# Activations, in both.
ACTIVATION_RULES: Rules = {**TENSOR_PARALLEL, "batch": BATCH}


def make_mesh(data: int, fsdp: int, tensor: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones). One of the sizes may be -1: the rest of the devices."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    bad = [f"mesh.{name} = {size}" for name, size in sizes.items() if size != -1 and size < 1]
    if bad or len(free) > 1:
        raise UserError(f"mesh sizes are at least 1, and one of them may be -1; got {sizes}: change --config.mesh.*")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh {sizes} does not cover the {len(devices)} devices; set --config.mesh.data, .fsdp and .tensor so "
            f"that their product is {len(devices)} (one may be -1)"
        )
    # A slice of 8 x 8 chips takes a tensor axis of 4 too: part of a physical axis, which `jax.make_mesh` refuses.
    grid = mesh_utils.create_device_mesh([sizes[name] for name in AXES], devices, allow_split_physical_axes=True)
    return mesh_of(grid)


def mesh_of(devices: np.ndarray, names: tuple[str, ...] = AXES) -> Mesh:
    return Mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def platform(mesh: Mesh | None) -> str:
    """Of the devices that a mesh is of: "cpu", "gpu" or "tpu"; they need not be here. Without one, of JAX's default."""
    return first_device(mesh).platform


def first_device(mesh: Mesh | None) -> jax.Device:
    """Of a mesh, which stands for all of them; without one, JAX's default."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def batch_shards(mesh: Mesh) -> int:
    """Parts that a batch of rows is split into."""
    return math.prod(mesh.shape[name] for name in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes, after `leading` axes that are whole."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH))


def place(arrays: Any, shardings: Any) -> Any:
    """Host arrays on the devices: each process puts there the parts that its own devices hold.

    Args:
      arrays: a tree of numpy arrays, the same in every process.
      shardings: its layout: a sharding for all, or a tree of them.
    """

    def put(sharding, array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda array: put(shardings, array), arrays)
    return jax.tree.map(put, shardings, arrays)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None) -> jax.Array:
    """Pins an activation's layout by its logical axes, one a dimension; without a mesh, leaves it to the compiler.

    Left to itself the compiler prefers to keep weights where they are and to split activations over the hidden axis,
    so that every device holds the whole batch.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, logical_sharding(mesh, ACTIVATION_RULES, axes, x.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_weight(weight: jax.Array, mesh: Mesh | None, axes: tuple[str, ...]) -> jax.Array:
    """A weight of the training layout in the decoding one, for one use; its gradient goes back as slices.

    Left to the compiler, a product over an axis that is split becomes a chain of partial products, each of which reads
    and writes the whole result, and a gradient is summed whole on every device before it is cut.

    Args:
      weight: in the compute dtype, which is what travels.
      mesh: None changes nothing.
      axes: its logical axes.
    """
    return _in_layout(weight, mesh, axes, DECODING_RULES)


def _gather_weight_backward(mesh, axes, _, gradient):
    return (_in_layout(gradient, mesh, axes, TRAINING_RULES),)


gather_weight.defvjp(
    lambda weight, mesh, axes: (gather_weight(weight, mesh, axes), None),
    _gather_weight_backward,
)


def _in_layout(x: jax.Array, mesh: Mesh | None, axes: tuple[str, ...], rules: Rules) -> jax.Array:
    return x if mesh is None else jax.lax.with_sharding_constraint(x, logical_sharding(mesh, rules, axes, x.shape))


def with_shardings(abstract: Any, shardings: Any, dtype: Any = None) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s with a layout: what restoring or reading arrays into it asks for.

    Args:
      abstract: the tree, of anything with a shape and a dtype.
      shardings: its layout, leaf by leaf.
      dtype: in place of the leaves' own.
    """
    leaf = lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(leaf, abstract, shardings)


def dividing_axes(mesh: Mesh, rules: Rules, axis: str | None, size: int) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of this size; none where it does not divide."""
    names = rules.get(axis, ())
    names = (names,) if isinstance(names, str) else names
    return names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()


def logical_sharding(mesh: Mesh, rules: Rules, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    parts = (dividing_axes(mesh, rules, axis, size) for axis, size in zip(axes, shape, strict=True))
    return NamedSharding(mesh, P(*(part or None for part in parts)))


def divisors(size: int) -> list[int]:
    """Of a positive number, ascending."""
    return [n for n in range(1, size + 1) if size % n == 0]
