"""Parameters on their way to files: fetched layer by layer, adapters merged into their base or in PEFT's format."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.experimental import multihost_utils

from gadjax.models.architecture import Lora
from gadjax.models.lora import ADAPTERS, Params
from gadjax.models.weights import HF_TENSORS, Checkpoint, named_leaves

_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The trained part of a network with adapters.

    Attributes:
      params: the adapters, and a discriminator's scalar head.
      lora: rank and scale.
      base_model: hub id or path of the base.
    """

    params: Params
    lora: Lora
    base_model: str


class LazyParam:
    """Stands in for an array that is to be written to files layer by layer."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.size = shape, math.prod(shape)

    def fetch(self, layer: int | None, *, wanted: bool = True) -> np.ndarray | None:
        """The parameter, or one layer of it, in float32; None if it is not `wanted`.

        All processes of a run call this. It first does what they do together, and then, if the result is `wanted`, what
        one process does alone, where it may fail.
        """
        raise NotImplementedError


class StoredParam(LazyParam):
    """A parameter of a checkpoint that is read when it is fetched."""

    def __init__(self, checkpoint: Checkpoint, path: str, shape: tuple[int, ...]):
        super().__init__(shape)
        self._checkpoint, self._path = checkpoint, path

    def fetch(self, layer: int | None, *, wanted: bool = True) -> np.ndarray | None:
        if not wanted:
            return None
        spec, shape = HF_TENSORS[self._path], self.shape if layer is None else self.shape[1:]
        with self._checkpoint.tensors() as tensor:
            value = spec.read(tensor(spec.name.format(layer)), shape, (slice(None),) * len(shape))
            return np.array(value, np.float32)


class MergedParam(LazyParam):
    """A kernel merged with its adapters, W + (alpha / rank) A B, in float32.

    Only the process that writes the result reads W from its file.
    """

    def __init__(self, kernel: StoredParam, a: jax.Array, b: jax.Array, scale: float):
        super().__init__(kernel.shape)
        self.kernel, self.a, self.b, self.scale = kernel, a, b, scale

    def fetch(self, layer: int | None, *, wanted: bool = True) -> np.ndarray | None:
        a, b = (fetch(leaf, layer, np.dtype(np.float32), wanted=wanted) for leaf in (self.a, self.b))
        return np.asarray(self.kernel.fetch(layer)) + self.scale * np.tensordot(a, b, axes=1) if wanted else None


def fetch(leaf: jax.Array | LazyParam, layer: int | None, dtype: np.dtype, *, wanted: bool = True) -> Any:
    """A parameter, or one layer of it, on the host.

    All processes of a run call this; one for which the value is not `wanted` takes part and gets None.
    """
    if isinstance(leaf, LazyParam):
        read = leaf.fetch(layer, wanted=wanted)
        return None if read is None else read.astype(dtype)
    value: Any = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    value = jnp.astype(value, dtype)
    if not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value) if wanted else None


def merged_params(path: pathlib.Path, abstract_base: Params, adapters: Adapters) -> Params:
    """A network's whole tree with merged kernels, whose base is read layer by layer as it is written.

    Args:
      path: the Hugging Face directory of the base.
      abstract_base: tree of the shapes of the parameters that the network takes from the base.
      adapters: the trained part.

    Raises:
      UserError: the files do not hold the base.
    """

    def merge(stored: Params, trained: Params) -> Params:
        out = dict(stored)
        for name, node in trained.items():
            if name not in ADAPTERS:
                out[name] = merge(stored[name], node) if name in stored else node
        if ADAPTERS[0] in trained:
            out["kernel"] = MergedParam(
                stored["kernel"], trained[ADAPTERS[0]], trained[ADAPTERS[1]], adapters.lora.scale
            )
        return out

    checkpoint, wanted = Checkpoint(path), named_leaves(abstract_base)
    checkpoint.check(wanted)
    leaves = [StoredParam(checkpoint, name, leaf.shape) for name, leaf in wanted.items()]
    return merge(jax.tree.unflatten(jax.tree.structure(abstract_base), leaves), adapters.params)


def write_peft(directory: pathlib.Path | None, adapters: Adapters, *, scalar: bool) -> None:
    """Writes adapter_config.json and adapter_model.safetensors for PEFT.

    A `scalar` head becomes one of PEFT's `modules_to_save`. All processes of a run call this; those
    that do not write pass None for the directory.
    """
    tensors, targets = {}, set()
    for path, leaf in named_leaves(adapters.params).items():
        module, _, name = path.rpartition("/")
        if name not in ADAPTERS:
            tensors[_PREFIX + HF_TENSORS[path].name] = HF_TENSORS[path].write(fetch(leaf, None, np.dtype(np.float32)))
            continue
        linear = HF_TENSORS[f"{module}/kernel"].name.removesuffix(".weight")
        targets.add(linear.rpartition(".")[2])
        for layer in range(leaf.shape[0]):
            value = fetch(leaf, layer, np.dtype(np.float32))
            is_a = name == ADAPTERS[0]
            matrix = value.reshape(-1, adapters.lora.rank) if is_a else value.reshape(adapters.lora.rank, -1)
            tensors[f"{_PREFIX}{linear.format(layer)}.lora_{'A' if is_a else 'B'}.weight"] = matrix.T
    if directory is None:
        return
    directory.mkdir()
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": adapters.base_model,
        "r": adapters.lora.rank,
        "lora_alpha": adapters.lora.alpha,
        "target_modules": sorted(targets),
        "modules_to_save": ["score"] if scalar else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
