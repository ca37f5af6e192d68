"""A decoder's architecture, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from gadjax.errors import UserError
from gadjax.models.config_reader import Reader
from gadjax.models.families import CAUSAL_LM, FAMILIES, TOKEN_CLASSIFICATION, Family, family_of
from gadjax.models.rope import PLAIN_ROPE, Rope

__all__ = ["CAUSAL_LM", "TOKEN_CLASSIFICATION", "Lora", "ModelConfig", "Rope"]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every projection of every layer (`gadjax.models.lora`).

    Attributes:
      rank: columns of A and rows of B.
      alpha: A B is scaled by alpha / rank.
    """

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor of the adapters' product."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder of one of the families (`gadjax.models.families`). Hashable: it can be a static argument of jit.

    Attributes:
      architecture: its class in transformers as a causal language model, such as "Qwen2ForCausalLM".
      qkv_bias: whether the projections to queries, keys and values have a bias.
      output_bias: whether the attention's output projection has one.
      qk_norm: whether queries and keys are normed, per head (Qwen3) or, with `qk_norm_whole`, over all heads together.
      norms: where a layer has norms: "before" attention and the feed-forward layer, "after" them (on what is added to
        the residual stream), or "around" them (both).
      norm_offset: added to a norm's scale.
      activation: of the feed-forward layer's gate, as transformers names it.
      embed_scale: the tokens' embeddings are multiplied by it; a head that is tied to them is not.
      query_scale: the queries are multiplied by it, where attention divides by something else than sqrt(head_dim).
      rope: the rotary embedding of all layers, unless there are `layer_ropes`.
      layer_ropes: each layer's own, if they differ; None for a layer without one.
      sliding_window: tokens that a token sees, itself included, in layers that are limited; None if no layer is.
      layer_slides: whether each layer is limited; None if all are.
      dtype: dtype of the computation. Trained parameters are float32; those that adapters keep frozen have `dtype`.
      remat: what a layer keeps for its backward pass, a name in `gadjax.models.decoder.REMAT_POLICIES`.
      lora: the adapters; None trains every parameter.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope: Rope = PLAIN_ROPE
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    norms: Literal["before", "after", "around"] = "before"
    norm_offset: float = 0.0
    activation: str = "silu"
    embed_scale: float = 1.0
    query_scale: float = 1.0
    layer_ropes: tuple[Rope | None, ...] | None = None
    max_position: int = 2048
    initializer_range: float = 0.02
    sliding_window: int | None = None
    layer_slides: tuple[bool, ...] | None = None
    dtype: str = "float32"
    remat: str = "none"
    lora: Lora | None = None

    @classmethod
    def from_hf(cls, config: dict[str, Any], where: str) -> ModelConfig:
        """Reads a Hugging Face config, of transformers 4 or 5.

        Args:
          config: the contents of a `config.json`.
          where: its path, for messages.

        Raises:
          UserError: gadjax does not compute this model exactly, or a field is missing or impossible.
        """
        read = Reader(config, where)
        family = family_of(read)
        # Heads.
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        kv_heads = read.count("num_key_value_heads", None if family.grouped else heads)
        if heads % kv_heads:
            read.fail(f"num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
        divided = hidden // heads if hidden % heads == 0 else None
        head_dim = read.count("head_dim", family.head_dim or divided)
        if head_dim % 2:
            read.fail(f"head_dim {head_dim} is odd; rotary positions need pairs of channels")
        # The feed-forward layer.
        field, computed = family.activation
        if (activation := config.get(field, computed)) != computed:
            read.fail(f"{field} {activation!r} is not supported; only {computed!r} is")
        if read.flag("mlp_bias"):
            read.fail("mlp_bias is true; feed-forward layers with biases are not supported")
        common: dict[str, Any] = {
            "architecture": family.name + CAUSAL_LM,
            "vocab_size": read.count("vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": read.count("intermediate_size"),
            "num_layers": read.count("num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "rms_norm_eps": read.positive("rms_norm_eps"),
            "tie_embeddings": read.flag("tie_word_embeddings", family.tied),
            "activation": computed,
            "max_position": read.count("max_position_embeddings"),
            "initializer_range": read.positive("initializer_range", 0.02),
        }
        return cls(**common | family.fields(read))

    @property
    def family(self) -> Family:
        """What `gadjax.models.families` says of its family."""
        return FAMILIES[self.architecture.removesuffix(CAUSAL_LM)]

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """Each layer's rotary embedding; None for a layer that has none."""
        return self.layer_ropes or (self.rope,) * self.num_layers

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, prompt and response, that is computed exactly."""
        return int(min(self.max_position, self.rope.exact_length))

    def windows(self, length: int) -> tuple[int | None, ...]:
        """Each layer's window; None where attention in a sequence of `length` tokens is full."""
        window = self.sliding_window if self.sliding_window is not None and self.sliding_window < length else None
        return tuple(window if slides else None for slides in self.layer_slides or (True,) * self.num_layers)

    def forward_flops(self, tokens: int, attended: int, predicted: int, attended_in_window: int | None = None) -> float:
        """Floating-point operations of a forward pass's matrix products.

        A weight costs two operations per token, and a channel of a head four per pair of tokens.

        Args:
          tokens: tokens that pass through the layers.
          attended: pairs of a token and a token that it sees.
          predicted: tokens whose logits are computed.
          attended_in_window: such pairs in a layer with a sliding window; None if no sequence is longer than it.
        """
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * heads + 2 * kv_heads + 3 * self.intermediate_size)
        head = 2.0 * self.vocab_size * self.hidden_size * predicted
        pairs = self.num_layers * attended
        if self.sliding_window is not None and attended_in_window is not None:
            pairs -= (attended - attended_in_window) * sum(self.layer_slides or (True,) * self.num_layers)
        return self.num_layers * 2.0 * layer * tokens + 4.0 * heads * pairs + head

    def check_length(
        self, length: int, where: str, remedy: str = "lower data.max_prompt_length and data.max_response_length"
    ) -> None:
        """Refuses sequences longer than `max_length`.

        Args:
          length: tokens of the longest sequence, prompt and response together.
          where: the model's path, for the message.
          remedy: what to do, for the message.
        """
        reach = f"but sequences may reach {length} tokens"
        if length > self.max_position:
            raise UserError(f"{where}: max_position_embeddings is {self.max_position}, {reach}; {remedy}")
        if length > self.rope.exact_length:
            raise UserError(
                f"{where}: original_max_position_embeddings is {self.rope.original_max_position}, {reach}, and "
                f"LongRoPE's long factors are not computed; {remedy}"
            )
