"""Weights from a Hugging Face directory or hub id, read from safetensors straight into their shards.

A parameter is built device by device from slices of the memory-mapped files. Host memory holds one parameter at a time,
and a process reads the shards of its own devices only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
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
from gadjax.models.lora import Params

_FLOATS = ("F64", "F32", "F16", "BF16")
_ROWS_COMPARED = 4096


@dataclasses.dataclass(frozen=True)
class HfTensor:
    """The tensor of a Hugging Face checkpoint that holds a parameter. There, linear maps are [out, in] and heads flat.

    Attributes:
      name: the tensor's name, with {} for the number of the layer.
      axes: for each axis of the tensor, the axes of our parameter (of one layer) that are flattened into it.
    """

    name: str
    axes: tuple[tuple[int, ...], ...]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the shape of one layer's parameter."""
        return tuple(math.prod(ours[axis] for axis in group) for group in self.axes)

    def read(self, source: Any, ours: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of one layer's parameter of the shape `ours`.

        `source` is the tensor's `safe_open(...).get_slice`, of which no more is read than the first axis needs.
        """
        cut, sizes, rest = [], [], []
        for first, *others in self.axes:
            start, stop, _ = index[first].indices(ours[first])
            block = math.prod(ours[axis] for axis in others)
            cut.append(slice(start * block, stop * block))
            sizes += [stop - start, *(ours[axis] for axis in others)]
            rest += [slice(None), *(index[axis] for axis in others)]
        piece = source[tuple(cut)].reshape(sizes)[tuple(rest)]
        return piece.transpose(np.argsort(sum(self.axes, ())))

    def write(self, value: np.ndarray) -> np.ndarray:
        """The tensor for one layer's parameter: the inverse of `read`."""
        return value.transpose(sum(self.axes, ())).reshape(self.shape(value.shape))


_VECTOR, _SAME, _LINEAR = ((0,),), ((0,), (1,)), ((1,), (0,))
_HEADS, _TO_HEADS, _FROM_HEADS = ((0, 1),), ((1, 2), (0,)), ((2,), (0, 1))
_LAYER = "model.layers.{}."

# Every parameter of `gadjax.models.decoder.Decoder`, by its path in the tree.
HF_TENSORS = {
    "embed/embedding": HfTensor("model.embed_tokens.weight", _SAME),
    "layers/input_norm/scale": HfTensor(_LAYER + "input_layernorm.weight", _VECTOR),
    **{f"layers/attention/{x}/kernel": HfTensor(f"{_LAYER}self_attn.{x}_proj.weight", _TO_HEADS) for x in "qkv"},
    **{f"layers/attention/{x}/bias": HfTensor(f"{_LAYER}self_attn.{x}_proj.bias", _HEADS) for x in "qkv"},
    "layers/attention/o/kernel": HfTensor(_LAYER + "self_attn.o_proj.weight", _FROM_HEADS),
    "layers/attention/o/bias": HfTensor(_LAYER + "self_attn.o_proj.bias", _VECTOR),
    "layers/attention/q_norm/scale": HfTensor(_LAYER + "self_attn.q_norm.weight", _VECTOR),
    "layers/attention/k_norm/scale": HfTensor(_LAYER + "self_attn.k_norm.weight", _VECTOR),
    "layers/post_attention_norm/scale": HfTensor(_LAYER + "post_attention_layernorm.weight", _VECTOR),
    "layers/mlp/gate/kernel": HfTensor(_LAYER + "mlp.gate_proj.weight", _LINEAR),
    "layers/mlp/up/kernel": HfTensor(_LAYER + "mlp.up_proj.weight", _LINEAR),
    "layers/mlp/down/kernel": HfTensor(_LAYER + "mlp.down_proj.weight", _LINEAR),
    "final_norm/scale": HfTensor("model.norm.weight", _VECTOR),
    "lm_head/embedding": HfTensor("lm_head.weight", _SAME),
    "score/kernel": HfTensor("score.weight", _LINEAR),
    "score/bias": HfTensor("score.bias", _VECTOR),
}


def named_leaves(params: Params) -> dict[str, Any]:
    """The leaves of a tree of parameters by path, such as "layers/mlp/gate/kernel", in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_stacked(path: str) -> bool:
    """Whether the parameter has a leading axis of layers."""
    return path.startswith("layers/")


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
    checkpoint = Checkpoint(path)
    stored = checkpoint.check(wanted, missing or ())
    if config.tie_embeddings and "score" not in abstract_params:
        checkpoint.check_tied()
    arrays = []
    for name, leaf in wanted.items():
        if name in stored:
            with checkpoint.tensors() as tensor:
                array = _place(leaf, functools.partial(_read, tensor, name, leaf))
            # The transfer keeps the host's copy until it is done: wait, so that there is one copy at a time.
            arrays.append(array.block_until_ready())
        else:
            arrays.append(jax.device_put(given[name].astype(leaf.dtype), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(abstract_params), arrays)


def check_weights(path: pathlib.Path, abstract_params: Params, missing: Iterable[str] = ()) -> None:
    """Raises the `UserError` that `load_params` would raise, from the headers of the files, without reading values.

    `abstract_params` needs shapes only; `missing` names subtrees that the checkpoint may lack.
    """
    Checkpoint(path).check(named_leaves(abstract_params), missing)


def _read(tensor: Callable[[str], Any], path: str, leaf: jax.ShapeDtypeStruct, index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a parameter, read layer by layer."""
    spec = HF_TENSORS[path]
    if not is_stacked(path):
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
      files, shapes, dtypes: each tensor's file, shape, and dtype as safetensors names it, by the tensor's name.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path = pathlib.Path(path)
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
            if not any(HF_TENSORS[name].name in self.shapes for name in own):
                stored -= own
        shapes: dict[str, Any] = {}
        for name, leaf in wanted.items():
            if name not in stored:
                continue
            spec = HF_TENSORS[name]
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
        name, head_name = HF_TENSORS["embed/embedding"].name, HF_TENSORS["lm_head/embedding"].name
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
