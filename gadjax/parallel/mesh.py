"""The device mesh, and which part of each array lives where."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.errors import UserError
from gadjax.models.model import Model

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis while training. Axes that are not named are whole on every device.
TRAINING_RULES = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


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
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes[name] for name in AXES), AXES, axis_types=kinds, devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Parts that a batch of rows is split into."""
    return math.prod(mesh.shape[name] for name in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes, after `leading` axes that are whole."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH))


def param_shardings(model: Model, mesh: Mesh) -> dict[str, Any]:
    """The training layout of a model's parameters: a tree of shardings. A size that does not divide stays whole."""

    def sharding(axes: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = [TRAINING_RULES.get(axis) for axis in axes]
        divides = [name and size % mesh.shape[name] == 0 for name, size in zip(names, leaf.shape, strict=True)]
        return NamedSharding(mesh, P(*(name if fits else None for name, fits in zip(names, divides, strict=True))))

    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(sharding, model.logical_axes(), model.abstract_params(), is_leaf=is_axes)


def with_shardings(abstract: Any, shardings: Any, dtype: Any = None) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s with a layout: what restoring or reading arrays into it asks for.

    Args:
      abstract: the tree, of anything with a shape and a dtype.
      shardings: its layout, leaf by leaf.
      dtype: in place of the leaves' own.
    """
    leaf = lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(leaf, abstract, shardings)


def abstract_params(model: Model, mesh: Mesh, dtype: Any = None) -> dict[str, Any]:
    """A model's parameters in the training layout, as `jax.ShapeDtypeStruct`s; float32 without a `dtype`."""
    return with_shardings(model.abstract_params(), param_shardings(model, mesh), dtype)


def optimizer_shardings(optimizer: optax.GradientTransformation, model: Model, mesh: Mesh) -> Any:
    """The optimizer's state laid out like the parameters that its moments belong to."""
    state = jax.eval_shape(optimizer.init, model.abstract_params())
    whole = replicated(mesh)
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        state,
        param_shardings(model, mesh),
        transform_non_params=lambda _: whole,
    )
