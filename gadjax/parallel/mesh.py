"""The device mesh, and the rules that say how each logical axis of an array is split over it."""

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

Rules = Mapping[str, str | tuple[str, ...]]  # logical axis -> mesh axes; an axis that is not named is not split

TENSOR_PARALLEL = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
# Parameters and optimizer state in training: each device holds a slice, and layers are gathered one at a time.
TRAINING_RULES: Rules = {**TENSOR_PARALLEL, "embed": "fsdp"}
# Parameters in decoding: each token reads all of them, so that they must not have to be gathered.
DECODING_RULES: Rules = TENSOR_PARALLEL
# Activations in both.
ACTIVATION_RULES: Rules = {**TENSOR_PARALLEL, "batch": BATCH}


def make_mesh(data: int, fsdp: int, tensor: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of these sizes over the given devices, or all. One size may be -1: it takes what the others leave.

    Raises:
      UserError: the sizes are impossible, or their product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh sizes are at least 1, and one of them may be -1; got {sizes}: change --config.mesh.*")
    # The size that is -1, from the others.
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh {sizes} does not cover the {len(devices)} devices; set --config.mesh.data, .fsdp and .tensor so "
            f"that their product is {len(devices)} (one may be -1)"
        )
    # `jax.make_mesh` would refuse a tensor axis of 4 on a slice of 8 x 8 chips, which is a part of a physical axis.
    grid = mesh_utils.create_device_mesh([sizes[name] for name in AXES], devices, allow_split_physical_axes=True)
    return mesh_of(grid)


def mesh_of(devices: np.ndarray, names: tuple[str, ...] = AXES) -> Mesh:
    """A mesh over an array of devices, with one dimension per axis; the compiler is free to choose layouts on it."""
    return Mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def platform(mesh: Mesh | None) -> str:
    """The platform of `first_device`: "cpu", "gpu" or "tpu". The mesh's devices need not be on this machine."""
    return first_device(mesh).platform


def first_device(mesh: Mesh | None) -> jax.Device:
    """The mesh's first device, or JAX's default device if `mesh` is None."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that a batch of rows is split into."""
    return math.prod(mesh.shape[name] for name in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """The sharding of an array whose rows, after `leading` other axes, are split over the batch axes."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH))


def place(arrays: Any, shardings: Any) -> Any:
    """Puts host arrays on the devices. Each process places the parts that its own devices hold.

    Args:
      arrays: a tree of numpy arrays, the same in every process.
      shardings: one sharding for all arrays, or a tree with one for each.
    """

    def put(sharding, array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda array: put(shardings, array), arrays)
    return jax.tree.map(put, shardings, arrays)


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None) -> jax.Array:
    """An activation with its layout fixed by its logical axes, one per dimension; unchanged if `mesh` is None.

    The compiler, if free to choose, keeps weights where they are and splits activations over the hidden axis, so that
    every device holds the whole batch.
    """
    return _in_layout(x, mesh, axes, ACTIVATION_RULES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_weight(weight: jax.Array, mesh: Mesh | None, axes: tuple[str, ...]) -> jax.Array:
    """A weight moved from the training layout to the decoding layout, for one use. Its gradient goes back as slices.

    The compiler, if free to choose, makes a product over a split axis a chain of partial products, each of which reads
    and writes the whole result; and it sums a gradient whole on every device before it cuts it.

    Args:
      weight: in the compute dtype, so that no more bytes travel than are used.
      mesh: None leaves the weight as it is.
      axes: the weight's logical axes.
    """
    return _in_layout(weight, mesh, axes, DECODING_RULES)


def _gather_weight_backward(mesh, axes, _, gradient):
    return (_in_layout(gradient, mesh, axes, TRAINING_RULES),)


gather_weight.defvjp(
    lambda weight, mesh, axes: (gather_weight(weight, mesh, axes), None),
    _gather_weight_backward,
)


def _in_layout(x: jax.Array, mesh: Mesh | None, axes: tuple[str | None, ...], rules: Rules) -> jax.Array:
    return x if mesh is None else jax.lax.with_sharding_constraint(x, logical_sharding(mesh, rules, axes, x.shape))


def with_shardings(abstract: Any, shardings: Any, dtype: Any = None) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s with shardings, as restoring a checkpoint or reading weights needs it.

    Args:
      abstract: a tree of anything with a shape and a dtype.
      shardings: a tree with one sharding per leaf.
      dtype: replaces the leaves' own dtypes.
    """
    leaf = lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(leaf, abstract, shardings)


def dividing_axes(mesh: Mesh, rules: Rules, axis: str | None, size: int) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of this size; none if they do not divide the size."""
    names = rules.get(axis, ()) if axis is not None else ()
    names = (names,) if isinstance(names, str) else names
    return names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()


def logical_sharding(mesh: Mesh, rules: Rules, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array of this shape by its logical axes; a dimension that does not divide is not split."""
    parts = (dividing_axes(mesh, rules, axis, size) for axis, size in zip(axes, shape, strict=True))
    return NamedSharding(mesh, P(*(part or None for part in parts)))


def divisors(size: int) -> list[int]:
    """The divisors of a positive number, in ascending order."""
    return [n for n in range(1, size + 1) if size % n == 0]
