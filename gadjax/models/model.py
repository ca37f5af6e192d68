"""The decoder as pure functions of a tree of parameters: what code outside `models/` uses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gadjax.models import lora
from gadjax.models.architecture import ModelConfig
from gadjax.models.decoder import Decoder
from gadjax.models.lora import Params


def resolve_dtype(dtype: str, platform: str | None = None) -> str:
    """The compute dtype that a config or flag names: "auto" is float32 on CPUs and bfloat16 elsewhere.

    `platform`: the devices' platform; None for that of JAX's default device.
    """
    if dtype == "auto":
        return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return dtype


def cast_params(params: Params, dtype: str) -> Params:
    """The parameters in `dtype`; a leaf that has it already is not copied."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder's architecture and head, without its parameters. Hashable, so that it can be a static argument of jit.

    Attributes:
      mesh: devices that activations are spread over (`gadjax.parallel.mesh`); None leaves them to the compiler.
    """

    config: ModelConfig
    head: Literal["lm", "score"] = "lm"
    mesh: Mesh | None = None

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return _abstract_decoder(self)

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters: N(0, initializer_range²); norms 1, biases 0, the scalar head N(0, 0.02²)."""
        return nnx.to_pure_dict(nnx.state(Decoder(self.config, self.head, nnx.Rngs(key))))

    def init_head(self, key: jax.Array) -> Params:
        """A fresh scalar head, {"kernel": N(0, 0.02²) [H, 1], "bias": 0 [1]} (`docs/algorithm.md`, section 1)."""
        return {
            "kernel": 0.02 * jax.random.normal(key, (self.config.hidden_size, 1)),
            "bias": jnp.zeros((1,)),
        }

    def abstract_params(self) -> Params:
        """The tree of parameters as `jax.ShapeDtypeStruct`s."""
        return nnx.to_pure_dict(self._abstract[1])

    def logical_axes(self) -> dict[str, Any]:
        """The tree of each parameter's logical axis names. A layer's parameters have a leading axis "layers"."""
        state = self._abstract[1]
        is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
        axes = jax.tree.map(lambda v: v.get_metadata()["axes"], state, is_leaf=is_variable)
        axes = nnx.to_pure_dict(axes)
        is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
        axes["layers"] = jax.tree.map(lambda names: ("layers", *names), axes["layers"], is_leaf=is_axes)
        return axes

    def bind(self, params: Params) -> Decoder:
        """The module with these parameters, for use inside one jitted function."""
        graphdef, abstract = self._abstract
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    @property
    def cached_heads(self) -> int:
        """The key-value heads of a cache. Each head is stored several times if the tensor axis does not divide them."""
        heads, queries = self.config.num_kv_heads, self.config.num_heads
        parts = self.mesh.shape["tensor"] if self.mesh else 1
        return next(n for n in range(heads, queries + 1, heads) if n % parts == 0 and queries % n == 0)

    def num_params(self) -> int:
        """The number of parameters, adapters included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    def num_trained(self) -> int:
        """The number of trained parameters; see `gadjax.models.lora`."""
        return sum(leaf.size for leaf in jax.tree.leaves(lora.trained(self.abstract_params())))

    def logits(self, params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """Next-token logits [B, T, V], float32, for tokens, positions and segments [B, T] (segment 0 is padding).

        For tests and small inputs; training and sampling never hold this array.
        """
        decoder = self.bind(params)
        return decoder.logits(decoder(tokens, positions, segments))

    def scores(self, params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """The scalar head's values [B, T], float32, for tokens, positions and segments [B, T]."""
        decoder = self.bind(params)
        return decoder.scores(decoder(tokens, positions, segments))


@functools.lru_cache(maxsize=16)
def _abstract_decoder(model: Model) -> tuple[nnx.GraphDef, nnx.State]:
    """A module without its arrays, in two parts: made once for all models that are equal, since it takes a while."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(model.config, model.head, nnx.Rngs(0), model.mesh)))


def grow_discriminator(generator: Params, head: Params) -> Params:
    """A copy of the generator's backbone with a scalar head, the discriminator (`docs/algorithm.md`, section 1).

    Args:
      generator: parameters of an "lm" model.
      head: `Model.init_head` of the "score" model of the same architecture.
    """
    backbone = {name: jax.tree.map(jnp.copy, tree) for name, tree in generator.items() if name != "lm_head"}
    return {**backbone, "score": head}
