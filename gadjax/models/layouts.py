"""Where a model's parameters and optimizer state lie on a mesh, in training and while sampling."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gadjax.errors import UserError
from gadjax.models import lora
from gadjax.models.model import Model, Params, cast_params
from gadjax.parallel.mesh import (
    AXES,
    DECODING_RULES,
    TENSOR_PARALLEL,
    TRAINING_RULES,
    Rules,
    divisors,
    logical_sharding,
    mesh_of,
    replicated,
    with_shardings,
)

_DECODING_WEIGHTS = 4 * 2**30  # bytes
_SPLIT_OVER_TENSOR = {
    "attention heads": "num_heads",
    "feed-forward channels": "intermediate_size",
    "embeddings (vocab_size)": "vocab_size",
}


def param_shardings(model: Model, mesh: Mesh, rules: Rules = TRAINING_RULES) -> dict[str, Any]:
    """The layout of a model's parameters: a tree of shardings. A size that does not divide stays whole."""
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    sharding = lambda axes, leaf: logical_sharding(mesh, rules, axes, leaf.shape)  # noqa: E731
    return jax.tree.map(sharding, model.logical_axes(), model.abstract_params(), is_leaf=is_axes)


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


def decoding_params(model: Model, params: Params, trained_on: Mesh | None = None) -> Params:
    """The parameters as the token loop reads them: in the compute dtype, whole but for the tensor axis.

    This model's mesh may group the devices otherwise than `trained_on`, the one that they come from (None: the
    same). Each move is one collective then: devices of a group exchange slices, put them in order where training
    has a tensor axis of its own, and groups gather them. Asked for at once, the compiler makes every weight whole.
    """
    params = cast_params(params, model.config.dtype)
    if model.mesh is None or model.mesh.size == 1:
        return params
    exchanging = exchanging_mesh(trained_on or model.mesh, model.mesh)
    for mesh, rules in (exchanging, (model.mesh, TRAINING_RULES), (model.mesh, DECODING_RULES)):
        params = jax.lax.with_sharding_constraint(params, param_shardings(model, mesh, rules))
    return params


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
    return mesh_of(devices)


def exchanging_mesh(training: Mesh, decoding: Mesh) -> tuple[Mesh, Rules]:
    """The layout in which weights are between two meshes of the same devices, of which the second shares more.

    A device's part in it lies inside of its part in training: only neighbours along fsdp have to exchange slices.
    """
    data, fsdp, trained = (training.shape[name] for name in AXES)
    shared = decoding.shape["tensor"] // trained
    devices = training.devices.reshape(data, fsdp // shared, shared, trained)
    mesh = mesh_of(devices, ("data", "fsdp", "shared", "tensor"))
    return mesh, {name: ("tensor", "shared") for name in TENSOR_PARALLEL} | {"embed": "fsdp"}


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


def _not_split(model: Model, tensor: int) -> str | None:
    """The first of a model's sizes that so many devices cannot split, None where they split all."""
    sizes = ((name, getattr(model.config, field)) for name, field in _SPLIT_OVER_TENSOR.items())
    return next((name for name, size in sizes if size % tensor), None)


def _listed(size: int) -> str:
    return ", ".join(map(str, divisors(size)))
