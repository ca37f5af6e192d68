"""The device mesh, and which part of each array lives where."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.errors import UserError
from gadjax.models import lora

if TYPE_CHECKING:
    from gadjax.models.model import Model

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

_DECODING_WEIGHTS = 4 * 2**30  # bytes
_SPLIT_OVER_TENSOR = {
    "attention heads": "num_heads",
    "feed-forward channels": "intermediate_size",
    "embeddings (vocab_size)": "vocab_size",
}

Rules = Mapping[str, str | tuple[str, ...]]  # logical axis -> mesh axes; axes that are not named are whole everywhere

_TENSOR_PARALLEL = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
# Parameters and optimizer state while training: each device holds a slice, gathered layer by layer.
TRAINING_RULES: Rules = {**_TENSOR_PARALLEL, "embed": "fsdp"}
# Parameters while decoding: every token reads all of them, so nothing is left to gather.
DECODING_RULES: Rules = _TENSOR_PARALLEL
# Activations, in both.
ACTIVATION_RULES: Rules = {**_TENSOR_PARALLEL, "batch": BATCH}


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
    return _mesh(grid)


def decoding_mesh(model: Model, mesh: Mesh, tensor: int) -> Mesh:
    """The mesh that tokens are sampled on: the same devices in the same order, `tensor` neighbours sharing a weight.

    Args:
      model: what is sampled.
      mesh: of training.
      tensor: devices along the tensor axis; 0 for the fewest, of those that divide the model's heads, with which a
        device holds no more than `_DECODING_WEIGHTS`.

    Raises:
      UserError: the devices cannot be grouped so.
    """
    data, fsdp, trained = (mesh.shape[name] for name in AXES)
    works = [trained * size for size in divisors(fsdp)]
    if tensor == 0:
        size = model.num_params() * jnp.dtype(model.config.dtype).itemsize
        even = [n for n in works if model.config.num_kv_heads % n == 0 and _not_split(model, n) is None] or [trained]
        tensor = next((n for n in even if size / n <= _DECODING_WEIGHTS), even[-1])
    if tensor not in works:
        raise UserError(
            f"config.mesh.decode_tensor {tensor} does not fit mesh.fsdp {fsdp} x mesh.tensor {trained}: use one of "
            f"{', '.join(map(str, works))}, or 0 to leave it to gadjax"
        )
    devices = mesh.devices.reshape(data, fsdp * trained // tensor, tensor)
    return _mesh(devices)


def exchanging_mesh(training: Mesh, decoding: Mesh) -> tuple[Mesh, Rules]:
    """The layout in which weights are between two meshes of the same devices, of which the second shares more.

    A device's part in it lies inside of its part in training: only neighbours along fsdp have to exchange slices.
    """
    data, fsdp, trained = (training.shape[name] for name in AXES)
    shared = decoding.shape["tensor"] // trained
    devices = training.devices.reshape(data, fsdp // shared, shared, trained)
    mesh = _mesh(devices, ("data", "fsdp", "shared", "tensor"))
    return mesh, {name: ("tensor", "shared") for name in _TENSOR_PARALLEL} | {"embed": "fsdp"}


def _mesh(devices: np.ndarray, names: tuple[str, ...] = AXES) -> Mesh:
    return Mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def check_divides(model: Model, mesh: Mesh, where: str, field: str = "config.mesh.tensor") -> None:
    """Refuses a mesh that cannot split a model's sizes evenly: what does not divide would be whole on every device.

    Key-value heads are free: where the tensor axis has more devices than there are heads, devices share them.

    Args:
      where: the model's path, for the message.
      field: of the config, that sets the tensor axis.

    Raises:
      UserError: with the sizes that would work.
    """
    config, tensor, fsdp = model.config, mesh.shape["tensor"], mesh.shape["fsdp"]
    if name := _not_split(model, tensor):
        sizes = {name: getattr(config, field) for name, field in _SPLIT_OVER_TENSOR.items()}
        works = _listed(math.gcd(*sizes.values(), mesh.devices.size))
        raise UserError(f"{where} has {sizes[name]} {name}, which {field} {tensor} does not divide: use one of {works}")
    if config.hidden_size % fsdp:
        works = _listed(math.gcd(config.hidden_size, mesh.devices.size))
        raise UserError(
            f"{where} has a hidden size of {config.hidden_size}, which config.mesh.fsdp {fsdp} does not divide: use "
            f"one of {works} and give the other devices to config.mesh.data or config.mesh.tensor"
        )


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
    return jax.lax.with_sharding_constraint(x, _sharding(mesh, ACTIVATION_RULES, axes, x.shape))


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
    return x if mesh is None else jax.lax.with_sharding_constraint(x, _sharding(mesh, rules, axes, x.shape))


def param_shardings(model: Model, mesh: Mesh, rules: Rules = TRAINING_RULES) -> dict[str, Any]:
    """The layout of a model's parameters: a tree of shardings. A size that does not divide stays whole."""
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    sharding = lambda axes, leaf: _sharding(mesh, rules, axes, leaf.shape)  # noqa: E731
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


def abstract_params(model: Model, mesh: Mesh, dtype: Any = None, rules: Rules = TRAINING_RULES) -> dict[str, Any]:
    """A model's parameters in a layout, as `jax.ShapeDtypeStruct`s; float32 without a `dtype`."""
    return with_shardings(model.abstract_params(), param_shardings(model, mesh, rules), dtype)


def optimizer_shardings(optimizer: optax.GradientTransformation, model: Model, mesh: Mesh) -> Any:
    """The optimizer's state laid out like the parameters that its moments belong to, those that are trained."""
    state = jax.eval_shape(optimizer.init, lora.trained(model.abstract_params()))
    whole = replicated(mesh)
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        state,
        lora.trained(param_shardings(model, mesh)),
        transform_non_params=lambda _: whole,
    )


def dividing_axes(mesh: Mesh, rules: Rules, axis: str | None, size: int) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of this size; none where it does not divide."""
    names = rules.get(axis, ())
    names = (names,) if isinstance(names, str) else names
    return names if size % math.prod(mesh.shape[name] for name in names) == 0 else ()


def _sharding(mesh: Mesh, rules: Rules, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    parts = (dividing_axes(mesh, rules, axis, size) for axis, size in zip(axes, shape, strict=True))
    return NamedSharding(mesh, P(*(part or None for part in parts)))


def _not_split(model: Model, tensor: int) -> str | None:
    """The first of a model's sizes that so many devices cannot split, None where they split all."""
    sizes = ((name, getattr(model.config, field)) for name, field in _SPLIT_OVER_TENSOR.items())
    return next((name for name, size in sizes if size % tensor), None)


def divisors(size: int) -> list[int]:
    """Of a positive number, ascending."""
    return [n for n in range(1, size + 1) if size % n == 0]


def _listed(size: int) -> str:
    return ", ".join(map(str, divisors(size)))
