"""Which tensor of a Hugging Face checkpoint holds which parameter."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from gadjax.models.architecture import ModelConfig


@dataclasses.dataclass(frozen=True)
class HfTensor:
    """The tensor of a Hugging Face checkpoint that holds a parameter. There, linear maps are [out, in] and heads flat.

    Attributes:
      name: the tensor's name, with {} for the number of the layer.
      axes: for each axis of the tensor, the axes of our parameter (of one layer) that are flattened into it.
      start, rows: where the parameter starts on the tensor's first axis, and the length of that axis, if the tensor
        holds several parameters; None if it holds one.
    """

    name: str
    axes: tuple[tuple[int, ...], ...]
    start: int = 0
    rows: int | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the shape of one layer's parameter."""
        first, *others = (math.prod(ours[axis] for axis in group) for group in self.axes)
        return (self.rows or first, *others)

    def read(self, source: Any, ours: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of one layer's parameter of the shape `ours`.

        `source` is the tensor's `safe_open(...).get_slice`, of which no more is read than the first axis needs.
        """
        cut, sizes, rest = [], [], []
        offset = self.start
        for first, *others in self.axes:
            start, stop, _ = index[first].indices(ours[first])
            block = math.prod(ours[axis] for axis in others)
            cut.append(slice(offset + start * block, offset + stop * block))
            offset = 0  # parameters lie one after the other on the first axis only
            sizes += [stop - start, *(ours[axis] for axis in others)]
            rest += [slice(None), *(index[axis] for axis in others)]
        piece = source[tuple(cut)].reshape(sizes)[tuple(rest)]
        return piece.transpose(np.argsort(sum(self.axes, ())))

    def write(self, value: np.ndarray) -> np.ndarray:
        """The tensor for one layer's parameter, or its part of the tensor: the inverse of `read`."""
        shape = [math.prod(value.shape[axis] for axis in group) for group in self.axes]
        return value.transpose(sum(self.axes, ())).reshape(shape)


_VECTOR, _SAME, _LINEAR = ((0,),), ((0,), (1,)), ((1,), (0,))
_HEADS, _TO_HEADS, _FROM_HEADS = ((0, 1),), ((1, 2), (0,)), ((2,), (0, 1))
_LAYER = "model.layers.{}."

# Every parameter of a decoder with Llama's layers, by its path in the tree of `gadjax.models.decoder.Decoder`.
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


def tensors_of(config: ModelConfig) -> dict[str, HfTensor]:
    """The tensors of a model of this architecture, by the path of the parameter that each holds."""
    tensors = dict(HF_TENSORS)
    for path, name in config.family.names.items():
        path = f"layers/{path}"
        tensors[path] = dataclasses.replace(tensors.get(path, HfTensor("", _VECTOR)), name=_LAYER + name)
    if config.qk_norm_whole:
        for x in "qk":
            path = f"layers/attention/{x}_norm/scale"
            tensors[path] = dataclasses.replace(tensors[path], axes=_HEADS)
    rows = {"q": config.num_heads * config.head_dim, "k": config.num_kv_heads * config.head_dim}
    rows |= {"v": rows["k"], "gate": config.intermediate_size, "up": config.intermediate_size}
    for name, paths in config.family.fused.items():
        sizes = [rows[path.rpartition("/")[2]] for path in paths]
        for i, path in enumerate(paths):
            path, start = f"layers/{path}/kernel", sum(sizes[:i])
            tensors[path] = dataclasses.replace(tensors[path], name=_LAYER + name, start=start, rows=sum(sizes))
    return tensors


def is_stacked(path: str) -> bool:
    """Whether the parameter has a leading axis of layers."""
    return path.startswith("layers/")
