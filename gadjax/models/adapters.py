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

from gadjax.models.architecture import Lora, ModelConfig
from gadjax.models.hf_tensors import tensors_of
from gadjax.models.lora import ADAPTERS, Params
from gadjax.models.weights import Checkpoint, named_leaves

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
        spec, shape = self._checkpoint.names[self._path], self.shape if layer is None else self.shape[1:]
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


def merged_params(path: pathlib.Path, config: ModelConfig, abstract_base: Params, adapters: Adapters) -> Params:
    """A network's whole tree with merged kernels, whose base is read layer by layer as it is written.

    Args:
      path: the Hugging Face directory of the base.
      config: its architecture.
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

    checkpoint, wanted = Checkpoint(path, config), named_leaves(abstract_base)
    checkpoint.check(wanted)
    leaves = [StoredParam(checkpoint, name, leaf.shape) for name, leaf in wanted.items()]
    return merge(jax.tree.unflatten(jax.tree.structure(abstract_base), leaves), adapters.params)


def write_peft(directory: pathlib.Path | None, adapters: Adapters, model_config: ModelConfig, *, scalar: bool) -> None:
    """Writes adapter_config.json and adapter_model.safetensors for PEFT.

    A `scalar` head becomes one of PEFT's `modules_to_save`. Where one tensor holds several kernels, their adapters
    become one: its rank is the sum of their ranks, and its B is zero outside of each kernel's own block. All processes
    of a run call this; those that do not write pass None for the directory.
    """
    names, leaves = tensors_of(model_config), named_leaves(adapters.params)
    tensors: dict[str, np.ndarray] = {}
    held: dict[str, list[str]] = {}  # the parameters in each adapter, by its tensor's name
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        if name not in ADAPTERS:
            tensors[_PREFIX + names[path].name] = names[path].write(fetch(leaf, None, np.dtype(np.float32)))
            continue
        linear = names[f"{module}/kernel"].name.removesuffix(".weight")
        held.setdefault(f"{linear}.lora_{'A' if name == ADAPTERS[0] else 'B'}.weight", []).append(path)
    rank, ranks = adapters.lora.rank, {}
    for name, paths in held.items():
        paths.sort(key=lambda path: names[f"{path.rpartition('/')[0]}/kernel"].start)
        linear, letter, _ = name.rsplit(".", 2)
        ranks[linear.rpartition(".")[2]] = rank * len(paths)
        for layer in range(leaves[paths[0]].shape[0]):
            values = [fetch(leaves[path], layer, np.dtype(np.float32)) for path in paths]
            if letter == "lora_A":
                tensors[_PREFIX + name.format(layer)] = np.concatenate([x.reshape(-1, rank).T for x in values])
            else:
                tensors[_PREFIX + name.format(layer)] = _block_diagonal([x.reshape(rank, -1).T for x in values])
    if directory is None:
        return
    directory.mkdir()
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    others = {linear: own for linear, own in ranks.items() if own != rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": adapters.base_model,
        "r": rank,
        "lora_alpha": adapters.lora.alpha,
        "rank_pattern": others,
        "alpha_pattern": {linear: adapters.lora.alpha * own / rank for linear, own in others.items()},
        "target_modules": sorted(ranks),
        "modules_to_save": ["score"] if scalar else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """A matrix with the blocks on its diagonal, and zeros elsewhere."""
    rows, columns = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    out = np.zeros((rows, columns), blocks[0].dtype)
    row = column = 0
    for block in blocks:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out
