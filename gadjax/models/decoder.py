"""One decoder for all families (`gadjax.models.families`), with a language-model or a scalar head.

The layers are one `Block`, whose parameters have a leading axis of layers and which is scanned, so that the compiler
sees one layer at any depth. What else differs between layers (`gadjax.models.layer_data`) is scanned with them, and is
a constant of each layer in the token loop. Parameters have logical axis names, which `gadjax.parallel.mesh` maps to
mesh axes. The computation is in `config.dtype`; norms, softmaxes, logits and scores are in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gadjax.kernels import choose
from gadjax.kernels.causal_attention import causal_attention
from gadjax.models.architecture import Lora, ModelConfig
from gadjax.models.layer_data import data_of_layers
from gadjax.models.logprobs import LOGITS
from gadjax.models.rotary import Rotary, rotary_of_layers, rotate
from gadjax.parallel.mesh import constrain, gather_weight
from gadjax.segments import Window

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
KeyValue = tuple[jax.Array, jax.Array]

_REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
REMAT_POLICIES = tuple(_REMAT)
_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": jax.nn.gelu}


def _param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None) -> nnx.Param:
    """A float32 parameter with its logical axis names: N(0, std²), or constant 1 if `std` is None."""
    value = jnp.ones(shape) if std is None else std * jax.random.normal(rngs.params(), shape)
    return nnx.Param(value, axes=axes)


class Norm(nnx.Module):
    """Root-mean-square norm over the last axes."""

    def __init__(self, axes: dict[str, int], config: ModelConfig, rngs: nnx.Rngs):
        self.scale = _param(rngs, tuple(axes.values()), tuple(axes), None if config.norm_offset == 0 else 0.0)
        self.axes, self.eps, self.offset = tuple(range(-len(axes), 0)), config.rms_norm_eps, config.norm_offset

    def __call__(self, x: jax.Array) -> jax.Array:  # [..., *axes] -> [..., *axes]
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=self.axes, keepdims=True) + self.eps)
        scale = self.scale[...] + self.offset if self.offset else self.scale[...]
        return (y * scale).astype(x.dtype)


def _hidden(config: ModelConfig) -> dict[str, int]:
    return {"norm": config.hidden_size}


def _same(x: jax.Array) -> jax.Array:
    """What stands in a norm's place where a family has none."""
    return x


class Projection(nnx.Module):
    """A linear map between one or several input axes and one or several output axes, with optional adapters."""

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        rngs: nnx.Rngs,
        *,
        std: float,
        bias: bool = False,
        lora: Lora | None = None,
        mesh: Mesh | None = None,
    ):
        self.kernel = _param(rngs, (*inputs.values(), *outputs.values()), (*inputs, *outputs), std)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        if bias:
            self.bias = _param(rngs, tuple(outputs.values()), tuple(outputs), 0.0)
        if lora:  # initialised as in PEFT: A is uniform with variance 1 / (3 inputs), B is zero
            bound = math.prod(inputs.values()) ** -0.5
            shape = (*inputs.values(), lora.rank)
            narrow = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
            self.lora_a = nnx.Param(narrow, axes=(*inputs, "rank"))
            self.lora_b = _param(rngs, (lora.rank, *outputs.values()), ("rank", *outputs), 0.0)
        self.has_bias, self.lora, self.mesh = bias, lora, mesh
        self.contracted = len(inputs)
        self.outputs_first = False

    def __call__(self, x: jax.Array, precision: jax.lax.Precision | None = None) -> jax.Array:
        """[..., *inputs] -> [..., *outputs]. By default, accelerators multiply float32 with fewer bits."""
        gather = lambda weight, *axes: gather_weight(weight[...].astype(x.dtype), self.mesh, axes)  # noqa: E731
        if self.outputs_first:
            y = self._outputs_first_product(x, gather(self.kernel, *self.outputs, *self.inputs), precision)
        else:
            kernel = gather(self.kernel, *self.inputs, *self.outputs)
            y = choose.weight_product(self.mesh)(x, kernel, self.contracted, precision=precision)
        if self.lora:
            narrow = jnp.tensordot(x, gather(self.lora_a, *self.inputs, "rank"), axes=self.contracted)
            narrow = constrain(narrow, self.mesh, "batch", *[None] * (narrow.ndim - 1))
            y += self.lora.scale * jnp.tensordot(narrow, gather(self.lora_b, "rank", *self.outputs), axes=1)
        return y + self.bias[...].astype(x.dtype) if self.has_bias else y

    def fold_adapters(self) -> None:
        """Adds the adapters to the kernel; the sum is rounded to the kernel's dtype once."""
        if self.lora:
            product = jnp.tensordot(self.lora_a[...], self.lora_b[...], axes=1, preferred_element_type=jnp.float32)
            kernel = self.kernel[...]
            self.kernel[...] = (kernel + self.lora.scale * product).astype(kernel.dtype)
            self.lora = None

    def put_outputs_first(self) -> None:
        """Stores the kernel as [*outputs, *inputs], the left factor of the product; see `choose.outputs_first`."""
        order = (*range(self.contracted, self.kernel[...].ndim), *range(self.contracted))
        self.kernel.set_value(self.kernel[...].transpose(order))
        self.outputs_first = True

    def _outputs_first_product(self, x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
        outputs = len(self.outputs)
        own = tuple(range(outputs, kernel.ndim)), tuple(range(x.ndim - self.contracted, x.ndim))
        y = jax.lax.dot_general(kernel, x, (own, ((), ())), precision=precision)  # [*outputs, ...]
        return y.transpose(*range(outputs, y.ndim), *range(outputs))


class Attention(nnx.Module):
    """The projections of grouped-query attention. The caller passes the attention itself."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, mesh: Mesh | None):
        common: Any = {"std": config.initializer_range, "lora": config.lora, "mesh": mesh}
        embed = {"embed": config.hidden_size}
        heads = {"heads": config.num_heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        self.q = Projection(embed, heads, rngs, bias=config.qkv_bias, **common)
        self.k = Projection(embed, kv_heads, rngs, bias=config.qkv_bias, **common)
        self.v = Projection(embed, kv_heads, rngs, bias=config.qkv_bias, **common)
        self.o = Projection(heads, embed, rngs, bias=config.output_bias, **common)
        if config.qk_norm:
            own = {"head_dim": config.head_dim}
            self.q_norm = Norm(heads if config.qk_norm_whole else own, config, rngs)
            self.k_norm = Norm(kv_heads if config.qk_norm_whole else own, config, rngs)
        self.config, self.mesh = config, mesh

    def __call__(self, x: jax.Array, positions: jax.Array, rotary: Rotary, attend: Attend) -> jax.Array:
        query = constrain(self.q(x), self.mesh, "batch", None, "heads", None)
        key = constrain(self.k(x), self.mesh, "batch", None, "kv_heads", None)
        value = constrain(self.v(x), self.mesh, "batch", None, "kv_heads", None)
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, positions, rotary), rotate(key, positions, rotary)
        if self.config.query_scale != 1:
            query = query * jnp.asarray(self.config.query_scale, query.dtype)
        return self.o(attend(query, key, value))


class MLP(nnx.Module):
    """The gated feed-forward layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, mesh: Mesh | None):
        common: Any = {"std": config.initializer_range, "lora": config.lora, "mesh": mesh}
        embed = {"embed": config.hidden_size}
        mlp = {"mlp": config.intermediate_size}
        self.gate = Projection(embed, mlp, rngs, **common)
        self.up = Projection(embed, mlp, rngs, **common)
        self.down = Projection(mlp, embed, rngs, **common)
        self.activation, self.mesh = _ACTIVATIONS[config.activation], mesh

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, H] -> [B, T, H]
        return self.down(constrain(self.activation(self.gate(x)) * self.up(x), self.mesh, "batch", None, "mlp"))


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, mesh: Mesh | None):
        norm = lambda *places: Norm(_hidden(config), config, rngs) if config.norms in places else _same  # noqa: E731
        self.input_norm = norm("before", "around")
        self.attention = Attention(config, rngs, mesh)
        self.attention_out_norm = norm("after", "around")
        self.post_attention_norm = norm("before", "around")
        self.mlp = MLP(config, rngs, mesh)
        self.mlp_out_norm = norm("after", "around")
        self.mesh = mesh

    def __call__(self, x: jax.Array, positions: jax.Array, rotary: Rotary, attend: Attend) -> jax.Array:  # [B, T, H]
        x = x + self.attention_out_norm(self.attention(self.input_norm(x), positions, rotary, attend))
        x = x + self.mlp_out_norm(self.mlp(self.post_attention_norm(x)))
        return constrain(x, self.mesh, "batch", None, None)


class Embedding(nnx.Module):
    """A table [V, H]: the tokens' embeddings, or the kernel of the language-model head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = _param(rngs, shape, ("vocab", "embed"), config.initializer_range)


class Decoder(nnx.Module):
    """Backbone and head: "lm" for next-token logits, or "score" for the discriminator's scalar per token."""

    def __init__(self, config: ModelConfig, head: str, rngs: nnx.Rngs, mesh: Mesh | None = None):
        make_layers = nnx.vmap(lambda rngs: Block(config, rngs, mesh), in_axes=0, out_axes=0)
        self.embed = Embedding(config, rngs)
        self.layers = nnx.split_rngs(splits=config.num_layers)(make_layers)(rngs)
        self.final_norm = Norm(_hidden(config), config, rngs)
        embed = {"embed": config.hidden_size}
        if head == "score":
            self.score = Projection(embed, {"score": 1}, rngs, std=0.02, bias=True)
        elif not config.tie_embeddings:
            self.lm_head = Embedding(config, rngs)
        self.config, self.mesh = config, mesh

    def __call__(self, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """Hidden states after the final norm.

        Args:
          tokens, positions, segments: [B, T] (`gadjax.segments`; 0 is padding).

        Returns:
          [B, T, H] in the compute dtype.
        """
        return self._scan_layers(tokens, positions, segments)[0]

    def prefill(self, tokens: jax.Array, lengths: jax.Array) -> list[KeyValue]:
        """Keys and values of right-padded prompts.

        Args:
          tokens: [B, P].
          lengths: [B] tokens of each prompt.

        Returns:
          Keys and values [B, P, Nkv, D] per layer; those of padding are finite, but mean nothing.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        segments = (positions < lengths[:, None]).astype(jnp.int32)
        _, (keys, values) = self._scan_layers(tokens, positions, segments, keep_kv=True)
        return [(keys[i], values[i]) for i in range(self.config.num_layers)]

    def decode(
        self, tokens: jax.Array, positions: jax.Array, layers: list[Block], attends: Iterable[Attend]
    ) -> jax.Array:
        """Hidden states [S, H] of one token per sequence.

        Args:
          tokens, positions: [S], each token and its position in its sequence.
          layers: `unstacked_layers()`, called outside the token loop.
          attends: one attention per layer. It maps queries [S, Nq, D] and the tokens' keys and values [S, Nkv, D] to
            [S, Nq, D], and keeps the keys and values for later tokens.
        """
        x = self._embed(tokens[:, None])
        rotaries = rotary_of_layers(self.config.ropes, self.config.head_dim)
        for block, rotary, attend in zip(layers, rotaries, attends, strict=True):
            one = lambda q, k, v, attend=attend: attend(q[:, 0], k[:, 0], v[:, 0])[:, None]  # noqa: E731
            x = block(x, positions[:, None], rotary, one)
        return self.final_norm(x)[:, 0]

    def unstacked_layers(self) -> list[Block]:
        """The layers one by one, for the token loop; a scan would copy each layer's weights out of the stack per token.

        The weights are copied here. So this is where adapters are folded in, since a folded stack would be a second
        copy, and adapters that stay apart make each token read more; and where CPUs get their layout of kernels.
        """
        graphdef, stacked = nnx.split(self.layers)
        count = self.config.num_layers
        layers = [nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], stacked)) for i in range(count)]
        for layer in layers:
            for _, module in nnx.iter_modules(layer):
                if isinstance(module, Projection):
                    module.fold_adapters()
                    if choose.outputs_first(self.mesh):
                        module.put_outputs_first()
        return layers

    @property
    def head(self) -> jax.Array:
        """The kernel [V, H] of the language-model head, as stored. In a tied model it is the tokens' table."""
        return (self.embed if self.config.tie_embeddings else self.lm_head).embedding[...]

    @jax.named_scope(LOGITS)
    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits [..., V], float32, from hidden states [..., H]."""
        contract = ((hidden.ndim - 1,), (1,)), ((), ())
        logits = jax.lax.dot_general(
            hidden, self.head.astype(hidden.dtype), contract, preferred_element_type=jnp.float32
        )
        return constrain(logits, self.mesh, "batch", *[None] * (logits.ndim - 2), "vocab")

    def scores(self, hidden: jax.Array) -> jax.Array:
        """The scalar head's float32 values [...] at hidden states [..., H] (`docs/algorithm.md`, section 1)."""
        return self.score(hidden.astype(jnp.float32), jax.lax.Precision.HIGHEST)[..., 0]

    def _embed(self, tokens: jax.Array) -> jax.Array:
        # The table is gathered along the hidden axis first: otherwise the devices would exchange each token's parts.
        table = gather_weight(self.embed.embedding[...].astype(self.config.dtype), self.mesh, ("vocab", "embed"))
        x = constrain(table[tokens], self.mesh, "batch", None, None)
        return x if self.config.embed_scale == 1 else x * jnp.asarray(self.config.embed_scale, x.dtype)

    def _scan_layers(self, tokens, positions, segments, keep_kv=False):
        graphdef, stacked = nnx.split(self.layers)
        shared, own = data_of_layers(self.config, tokens.shape[1])

        def layer(x, inputs):
            params, own = inputs
            data = shared if own is None else own
            window = None if data.window is None else Window(positions, data.window)
            kept = []

            def attend(query, key, value):
                kept.append((key, value))
                return causal_attention(query, key, value, segments, self.mesh, window=window)

            x = nnx.merge(graphdef, params)(x, positions, data.rotary, attend)
            return x, kept[0] if keep_kv else None

        policy = _REMAT[self.config.remat]
        if policy is not None and not keep_kv:
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        x, kv = jax.lax.scan(layer, self._embed(tokens), (stacked, own))
        return self.final_norm(x), kv
