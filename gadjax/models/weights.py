"""Weights from a Hugging Face directory or hub id, read from safetensors straight into their shards.

A parameter is built device by device from slices of the memory-mapped files. Host memory holds one parameter at a time,
and a process reads the shards of its own devices only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors

from gadjax import hub
from gadjax.errors import UserError
from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_files import read_json, some, weight_files
from gadjax.models.hf_tensors import HfTensor, is_stacked, tensors_of
from gadjax.models.lora import Params

_FLOATS = ("F64", "F32", "F16", "BF16")
_ROWS_COMPARED = 4096


def named_leaves(params: Params) -> dict[str, Any]:
    """The leaves of a tree of parameters by path, such as "layers/mlp/gate/kernel", in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def resolve_model(name: str | os.PathLike[str]) -> pathlib.Path:
    """The local directory of a model with its weights; see `hub.local_directory`."""
    return hub.local_directory(name, hub.MODEL_FILES)


def read_hf_config(path: pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
    """A model's config.json, as a `ModelConfig` and as it stands in the file.

    Raises:
      UserError: the file is missing or broken, or describes a model that is not supported.
    """
    file = pathlib.Path(path) / "config.json"
    config = read_json(file)
    return ModelConfig.from_hf(config, str(file)), config


def load_params(
    path: pathlib.Path,
    config: ModelConfig,
    abstract_params: Params,
    missing: Mapping[str, Params] | None = None,
) -> Params:
    """A checkpoint's weights as a tree of arrays of the given shapes, dtypes and shardings.

    Args:
      path: a Hugging Face directory with model.safetensors, or with several files and their index.
      config: the model's architecture.
      abstract_params: tree of `jax.ShapeDtypeStruct`s, with shardings for arrays that span devices.
      missing: subtrees by name, which replace those that the checkpoint has no tensor of. With
        {"score": {"kernel": ..., "bias": ...}} a causal language model becomes a discriminator.

    Raises:
      UserError: files are missing, broken or pickled; tensors are missing, misshapen, or of another model.
    """
    wanted, given = named_leaves(abstract_params), named_leaves(dict(missing or {}))
    checkpoint = Checkpoint(path, config)
    stored = checkpoint.check(wanted, missing or ())
    if config.tie_embeddings and "score" not in abstract_params:
        checkpoint.check_tied()
    arrays = []
    for name, leaf in wanted.items():
        if name in stored:
            with checkpoint.tensors() as tensor:
                array = _place(leaf, functools.partial(_read, tensor, checkpoint.names[name], leaf, is_stacked(name)))
            # The transfer keeps the host's copy until it is done: wait, so that there is one copy at a time.
            arrays.append(array.block_until_ready())
        else:
            arrays.append(jax.device_put(given[name].astype(leaf.dtype), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(abstract_params), arrays)


def check_weights(
    path: pathlib.Path, config: ModelConfig, abstract_params: Params, missing: Iterable[str] = ()
) -> None:
    """Raises the `UserError` that `load_params` would raise, from the headers of the files, without reading values.

    `abstract_params` needs shapes only; `missing` names subtrees that the checkpoint may lack.
    """
    Checkpoint(path, config).check(named_leaves(abstract_params), missing)


def _read(
    tensor: Callable[[str], Any], spec: HfTensor, leaf: jax.ShapeDtypeStruct, stacked: bool, index: tuple[slice, ...]
) -> np.ndarray:
    """The part `index` of a parameter, read layer by layer if it is `stacked`."""
    if not stacked:
        return np.ascontiguousarray(spec.read(tensor(spec.name), leaf.shape, index), leaf.dtype)
    layers = range(leaf.shape[0])[index[0]]
    shape = [len(range(size)[part]) for size, part in zip(leaf.shape[1:], index[1:], strict=True)]
    out = np.empty((len(layers), *shape), leaf.dtype)
    for i, layer in enumerate(layers):
        out[i] = spec.read(tensor(spec.name.format(layer)), leaf.shape[1:], index[1:])
    return out


def _place(leaf: jax.ShapeDtypeStruct, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array with the leaf's sharding. Each part is read once, on however many devices it is."""
    if leaf.sharding is None:
        return jax.device_put(read((slice(None),) * len(leaf.shape)))
    parts: dict[tuple, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = tuple((piece.start, piece.stop) for piece in index)
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


class Checkpoint:
    """The safetensors files of a directory.

    Attributes:
      names: the tensor of each parameter, by the parameter's path.
      files, shapes, dtypes: each tensor's file, shape, and dtype as safetensors names it, by the tensor's name.
    """

    def __init__(self, path: pathlib.Path, config: ModelConfig):
        """`config`: the architecture whose tensors' names they have."""
        self.path = path = pathlib.Path(path)
        self.names = tensors_of(config)
        self.files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in weight_files(path):
            try:
                # Opened here first: safetensors says of a file that may not be read that there is none.
                with open(file, "rb"), safetensors.safe_open(file, framework="numpy") as handle:
                    for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
                        tensor = handle.get_slice(name)
                        self.files[name] = file
                        self.shapes[name], self.dtypes[name] = tuple(tensor.get_shape()), tensor.get_dtype()
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
            except safetensors.SafetensorError as error:
                raise UserError(f"{file}: not a complete safetensors file ({error}); fetch it again") from error

    @contextlib.contextmanager
    def tensors(self) -> Iterator[Callable[[str], Any]]:
        """A function from a tensor's name to a slice that is read when it is indexed.

        The files are unmapped at the end, so that what was read does not stay in this process's memory.
        """
        with contextlib.ExitStack() as stack:
            handles: dict[pathlib.Path, Any] = {}

            def tensor(name: str) -> Any:
                file = self.files[name]
                if file not in handles:
                    handles[file] = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
                return handles[file].get_slice(name)

            yield tensor

    def check(self, wanted: Mapping[str, jax.ShapeDtypeStruct], missing: Iterable[str] = ()) -> set[str]:
        """The wanted parameters that are stored: all but the subtrees `missing` of which no tensor is.

        Raises:
          UserError: a tensor is missing, misshapen or quantised, or another one would change the model.
        """
        stored = set(wanted)
        for subtree in missing:
            own = {name for name in wanted if name.startswith(f"{subtree}/")}
            if not any(self.names[name].name in self.shapes for name in own):
                stored -= own
        shapes: dict[str, Any] = {}
        for name, leaf in wanted.items():
            if name not in stored:
                continue
            spec = self.names[name]
            if is_stacked(name):
                shapes |= {spec.name.format(i): spec.shape(leaf.shape[1:]) for i in range(leaf.shape[0])}
            else:
                shapes[spec.name] = spec.shape(leaf.shape)
        if absent := [name for name in shapes if name not in self.shapes]:
            raise UserError(
                f"{self.path}: {len(absent)} of {len(shapes)} tensors are missing: {some(absent)}; the "
                "weights are incomplete or do not belong to config.json"
            )
        for name, shape in shapes.items():
            if self.shapes[name] != shape:
                found, asked = list(self.shapes[name]), list(shape)
                raise UserError(
                    f"{self.path}: tensor {name} has the shape {found}, but config.json asks for {asked}; "
                    "the weights do not belong to it"
                )
            if self.dtypes[name] not in _FLOATS:
                raise UserError(
                    f"{self.path}: tensor {name} is {self.dtypes[name]}; quantised weights are not "
                    f"supported, only {', '.join(_FLOATS)}"
                )
        # Two kinds of other tensors are harmless: the head of a language model, which a discriminator does not need and
        # `check_tied` compares in a tied model, and the rotary frequencies in old exports.
        left = [name for name in self.shapes if name not in shapes and not name.endswith(".inv_freq")]
        left = [name for name in left if name != "lm_head.weight"]
        if left:
            raise UserError(
                f"{self.path}: {len(left)} tensors have no place in the model that config.json describes: "
                f"{some(left)}; the weights do not belong to it"
            )
        return stored

    def check_tied(self) -> None:
        """Raises a `UserError` if a head is stored that differs from the embeddings that it is tied to."""
        name, head_name = self.names["embed/embedding"].name, self.names["lm_head/embedding"].name
        if head_name not in self.shapes:
            return
        same = self.shapes[name] == self.shapes[head_name]
        with self.tensors() as tensor:
            starts = range(0, self.shapes[name][0] if same else 0, _ROWS_COMPARED)
            cuts = [slice(start, min(start + _ROWS_COMPARED, self.shapes[name][0])) for start in starts]
            same = same and all(np.array_equal(tensor(name)[cut], tensor(head_name)[cut]) for cut in cuts)
        if not same:
            raise UserError(
                f"{self.path}: {head_name} differs from {name}, but config.json ties them; set "
                "tie_word_embeddings to false there to keep the head"
            )
