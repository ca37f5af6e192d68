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
    """A tree with the sharding of each parameter. An axis that the mesh does not divide is not split."""
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    sharding = lambda axes, leaf: logical_sharding(mesh, rules, axes, leaf.shape)  # noqa: E731
    return jax.tree.map(sharding, model.logical_axes(), model.abstract_params(), is_leaf=is_axes)


def abstract_params(model: Model, mesh: Mesh, dtype: Any = None, rules: Rules = TRAINING_RULES) -> dict[str, Any]:
    """The model's parameters as `jax.ShapeDtypeStruct`s with shardings, float32 or in `dtype`."""
    return with_shardings(model.abstract_params(), param_shardings(model, mesh, rules), dtype)


def optimizer_shardings(optimizer: optax.GradientTransformation, model: Model, mesh: Mesh) -> Any:
    """The shardings of the optimizer's state: moments lie like the trained parameters, the rest is replicated."""
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
    """The parameters as the token loop reads them: in the compute dtype, split over the tensor axis only.

    Args:
      model: the sampled model, with the mesh of sampling.
      params: parameters in the training layout.
      trained_on: the mesh they come from, which may group the devices differently; None for the model's own.
    """
    params = cast_params(params, model.config.dtype)
    if model.mesh is None or model.mesh.size == 1:
        return params
    # Three moves, each one collective: devices of a group exchange slices, put them in order if training has a tensor
    # axis of its own, and gather them. Asked for all at once, the compiler would make every weight whole.
    exchanging = _exchanging_mesh(trained_on or model.mesh, model.mesh)
    for mesh, rules in (exchanging, (model.mesh, TRAINING_RULES), (model.mesh, DECODING_RULES)):
        params = jax.lax.with_sharding_constraint(params, param_shardings(model, mesh, rules))
    return params


def decoding_mesh(model: Model, mesh: Mesh, tensor: int) -> Mesh:
    """The mesh of sampling: the same devices in the same order, of which `tensor` neighbours share each weight.

    Args:
      model: the sampled model.
      mesh: the mesh of training.
      tensor: devices along the tensor axis. 0 chooses the smallest number that divides the model's heads and leaves
        at most `_DECODING_WEIGHTS` bytes of weights on a device.

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


def _exchanging_mesh(training: Mesh, decoding: Mesh) -> tuple[Mesh, Rules]:
    """The layout of weights on their way from the training mesh to the decoding mesh, which splits fewer ways.

    A device's part of a weight lies inside its part in training, so that only neighbours along fsdp exchange slices.
    """
    data, fsdp, trained = (training.shape[name] for name in AXES)
    shared = decoding.shape["tensor"] // trained
    devices = training.devices.reshape(data, fsdp // shared, shared, trained)
    mesh = mesh_of(devices, ("data", "fsdp", "shared", "tensor"))
    return mesh, {name: ("tensor", "shared") for name in TENSOR_PARALLEL} | {"embed": "fsdp"}


def check_divides(model: Model, mesh: Mesh, where: str, field: str = "config.mesh.tensor") -> None:
    """Refuses a mesh that cannot split the model's sizes evenly: such a weight would be whole on every device.

    The number of key-value heads is free: if the tensor axis has more devices, they share heads.

    Args:
      where: the model's path, for the message.
      field: the config's field that sets the tensor axis, for the message.

    Raises:
      UserError: names the sizes that would work.
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
    """The name of a size of the model that `tensor` does not divide, or None."""
    sizes = ((name, getattr(model.config, field)) for name, field in _SPLIT_OVER_TENSOR.items())
    return next((name for name, size in sizes if size % tensor), None)


def _listed(size: int) -> str:
    return ", ".join(map(str, divisors(size)))
