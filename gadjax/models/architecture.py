"""A decoder's architecture, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, Literal, NoReturn

from gadjax.errors import UserError

ROPE_KINDS = ("default", "linear", "llama3")
CAUSAL_LM, TOKEN_CLASSIFICATION = "ForCausalLM", "ForTokenClassification"

_FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral")
_MOST, _MOST_LAYERS = 2**31 - 1, 9999  # larger values overflow shapes, or fill memory with tensors' names
_MOST_NUMBER = sys.float_info.max
_SUPPORTED = ", ".join(family + CAUSAL_LM for family in _FAMILIES)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      theta: base of the frequencies.
      kind: how the context was stretched: "default" (not at all), "linear" (every frequency divided by `factor`) or
        "llama3" (Llama 3.1: frequencies of long wavelengths divided by `factor`, and a blend between the two factors).
      original_max_position: tokens of the context before it was stretched ("llama3" only).
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


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
    """A decoder of the Llama, Qwen2, Qwen3 or Mistral family. Hashable, so that it can be a static argument of jit.

    Attributes:
      architecture: its class in transformers as a causal language model, such as "Qwen2ForCausalLM".
      qkv_bias: whether the projections to queries, keys and values have a bias.
      output_bias: whether the attention's output projection has one.
      qk_norm: whether queries and keys are normed per head (Qwen3).
      sliding_window: tokens that attention looks back over, if a layer is limited; see `max_length`.
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
    rope: Rope = Rope()
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    max_position: int = 2048
    initializer_range: float = 0.02
    sliding_window: int | None = None
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
        read = _Reader(config, where)
        family = _family(read)
        # Heads.
        hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
        # Llama 1 had no grouped heads, so that its configs lack the number. In other families it must be given.
        kv_heads = read.count("num_key_value_heads", heads if family == "Llama" else None)
        if heads % kv_heads:
            read.fail(f"num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
        divided = hidden // heads if hidden % heads == 0 else None
        head_dim = read.count("head_dim", 128 if family == "Qwen3" else divided)
        if head_dim % 2:
            read.fail(f"head_dim {head_dim} is odd; rotary positions need pairs of channels")
        # The feed-forward layer.
        if (activation := config.get("hidden_act", "silu")) != "silu":
            read.fail(f"hidden_act {activation!r} is not supported; only 'silu' is")
        if read.flag("mlp_bias"):
            read.fail("mlp_bias is true; feed-forward layers with biases are not supported")
        max_position = read.count("max_position_embeddings")
        bias = read.flag("attention_bias") and family in ("Llama", "Qwen3")
        return cls(
            architecture=family + CAUSAL_LM,
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            num_layers=read.count("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=read.positive("rms_norm_eps"),
            rope=_rope(read, max_position),
            tie_embeddings=read.flag("tie_word_embeddings"),
            qkv_bias=bias or family == "Qwen2",
            output_bias=bias,
            qk_norm=family == "Qwen3",
            max_position=max_position,
            initializer_range=read.positive("initializer_range", 0.02),
            sliding_window=_sliding_window(read, family),
        )

    @property
    def family(self) -> str:
        """The family's name: "Llama", "Qwen2", "Qwen3" or "Mistral"."""
        return self.architecture.removesuffix(CAUSAL_LM)

    @property
    def model_type(self) -> str:
        """transformers' name of the family, such as "qwen2"."""
        return self.family.lower()

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, prompt and response, that is computed exactly.

        Sequences shorter than the window are computed exactly: their attention is full attention.
        """
        return self.max_position if self.sliding_window is None else min(self.max_position, self.sliding_window - 1)

    def forward_flops(self, tokens: int, attended: int, predicted: int) -> float:
        """Floating-point operations of a forward pass's matrix products.

        A weight costs two operations per token, and a channel of a head four per pair of tokens.

        Args:
          tokens: tokens that pass through the layers.
          attended: pairs of a token and a token that it sees.
          predicted: tokens whose logits are computed.
        """
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * heads + 2 * kv_heads + 3 * self.intermediate_size)
        head = 2.0 * self.vocab_size * self.hidden_size * predicted
        return self.num_layers * (2.0 * layer * tokens + 4.0 * heads * attended) + head

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
        if length > self.max_length:
            raise UserError(
                f"{where}: sliding_window is {self.sliding_window}, {reach}, and windowed attention is not computed; "
                f"{remedy} until the sum is below the window"
            )


class _Reader:
    """Typed access to a config's fields. Errors name the file and the field; a null field counts as missing."""

    def __init__(self, config: dict[str, Any], where: str):
        self.config, self.where = config, where

    def fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self.where}: {problem}")

    def count(self, name: str, default: int | None = None, fields: dict[str, Any] | None = None, least: int = 1) -> int:
        value = self._get(name, default, fields)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.fail(f"{name} is {value!r}; it must be an integer of at least {least}")
        most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST
        if value > most:
            self.fail(f"{name} is {value}; it must be an integer of at most {most}")
        return value

    def positive(self, name: str, default: float | None = None, fields: dict[str, Any] | None = None) -> float:
        value = self._get(name, default, fields)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.fail(f"{name} is {value!r}; it must be a number above 0")
        if value > _MOST_NUMBER:
            self.fail(f"{name} is {value}; it must be a finite number")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._get(name, False)
        if not isinstance(value, bool):
            self.fail(f"{name} is {value!r}; it must be true or false")
        return value

    def _get(self, name: str, default: Any, fields: dict[str, Any] | None = None) -> Any:
        value = (self.config if fields is None else fields).get(name)
        value = default if value is None else value
        if value is None:
            self.fail(f"field {name} is missing")
        return value


def _family(read: _Reader) -> str:
    """The model's family. Refuses models that need code or layers that gadjax does not have."""
    config = read.config
    if config.get("auto_map"):
        read.fail("auto_map asks for trust_remote_code; code from a checkpoint is never run")
    if config.get("quantization_config"):
        read.fail("quantization_config: quantised weights are not supported; take the unquantised checkpoint")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        read.fail(f"architectures is {architectures!r}; it must name one of {_SUPPORTED}")
    name = str(architectures[0])
    family = name.removesuffix(CAUSAL_LM).removesuffix(TOKEN_CLASSIFICATION)
    if family not in _FAMILIES or name not in (family + CAUSAL_LM, family + TOKEN_CLASSIFICATION):
        read.fail(f"architecture {name} is not supported; supported are {_SUPPORTED}")
    # transformers picks its class by model_type, so the two must agree.
    if config.get("model_type", family.lower()) != family.lower():
        read.fail(f"model_type {config['model_type']!r} does not belong to the architecture {name}")
    return family


def _rope(read: _Reader, max_position: int) -> Rope:
    """Reads `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5)."""
    config = read.config
    # If both are given, transformers 5 uses rope_scaling too.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    fields = config.get(name) or {}
    if not isinstance(fields, dict) or any(isinstance(value, dict) for value in fields.values()):
        read.fail(f"{name} is {fields!r}; only one rotary embedding, the same in every layer, is supported")
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ROPE_KINDS:
        read.fail(f"{name} has the type {kind!r}, which is not supported; supported are {', '.join(ROPE_KINDS)}")
    partial = fields.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        read.fail(f"partial_rotary_factor is {partial!r}; rotating a part of each head is not supported")
    theta = read.positive("rope_theta", read.positive("rope_theta", Rope.theta), fields)
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, read.positive("factor", fields=fields))
    name_of_original = "original_max_position_embeddings"
    original = read.count(name_of_original, read.count(name_of_original, max_position, fields))
    low, high = (read.positive(field, fields=fields) for field in ("low_freq_factor", "high_freq_factor"))
    if not low < high:
        read.fail(f"{name} has low_freq_factor {low}, which must be below high_freq_factor {high}")
    return Rope(theta, kind, read.positive("factor", fields=fields), low, high, original)


def _sliding_window(read: _Reader, family: str) -> int | None:
    """The window, or None if no layer has one. In Qwen's configs, a layer has one only with `use_sliding_window`."""
    config = read.config
    if family == "Llama":
        return None
    if family == "Mistral":
        window = config.get("sliding_window", 4096)  # null: no window; absent: Mistral 7B's first release
        return None if window is None else read.count("sliding_window", window)
    if not read.flag("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return None
    kinds = config.get("layer_types")
    if kinds is None:
        slides = read.count("max_window_layers", 28, least=0) < read.count("num_hidden_layers")
    elif isinstance(kinds, list):
        slides = "sliding_attention" in kinds
    else:
        read.fail(f"layer_types is {kinds!r}; it must be a list with the kind of each layer")
    return read.count("sliding_window", 4096) if slides else None
