"""The families of decoders: for each, what differs from the common decoder, its tensors' names, and what is refused.

The common decoder is Llama's (`gadjax.models.architecture.ModelConfig` at its defaults): a norm before attention and
before the feed-forward layer, a gated SiLU, one rotary embedding for all layers, no biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gadjax.models.config_reader import FULL, SLIDING, Reader
from gadjax.models.rope import phi_rope, rope_of, ropes_by_kind

CAUSAL_LM, TOKEN_CLASSIFICATION = "ForCausalLM", "ForTokenClassification"


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
      name: transformers' name of its classes, such as "Qwen2" of "Qwen2ForCausalLM".
      model_type: transformers' name of its config, such as "qwen2".
      fields: the fields of `ModelConfig` that it sets, from its `config.json`. A field of the config.json that changes
        the computation and is not understood is an error.
      title: what people call it.
      names: tensors of a layer that are not named as Llama's: each one's name, by the parameter's path in a layer.
      fused: tensors that hold several kernels, one after the other: the paths of these in a layer, by the name.
      head_dim: channels of a head where the config does not say; None divides the hidden size.
      grouped: whether the config must say how many key-value heads there are; otherwise there are as many as heads.
      activation: the field that names the feed-forward layer's activation, and the one value that is computed.
      tied: whether the head is tied to the embeddings where the config does not say.
      classifies: whether transformers has a ForTokenClassification of it.
      code: what `auto_map` may name, since transformers has the class itself and does not run the checkpoint's code.
    """

    name: str
    model_type: str
    fields: Callable[[Reader], dict[str, Any]]
    title: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    head_dim: int | None = None
    grouped: bool = True
    activation: tuple[str, str] = ("hidden_act", "silu")
    tied: bool = False
    classifies: bool = True
    code: frozenset[str] = frozenset()


def _biases(read: Reader) -> dict[str, Any]:
    """All of the attention's projections have biases, or none has."""
    return dict.fromkeys(("qkv_bias", "output_bias"), read.flag("attention_bias"))


def _llama(read: Reader) -> dict[str, Any]:
    return {"rope": rope_of(read), **_biases(read)}


def _mistral(read: Reader) -> dict[str, Any]:
    window = read.config.get("sliding_window", 4096)  # null: no window; absent: Mistral 7B's first release
    return {"rope": rope_of(read), "sliding_window": None if window is None else read.count("sliding_window", window)}


def _qwen2(read: Reader) -> dict[str, Any]:
    return {"rope": rope_of(read), "qkv_bias": True, **_qwen_windows(read)}


def _qwen3(read: Reader) -> dict[str, Any]:
    return {"rope": rope_of(read), "qk_norm": True, **_qwen_windows(read), **_biases(read)}


def _qwen_windows(read: Reader) -> dict[str, Any]:
    """A layer has a window only with `use_sliding_window`."""
    if not read.flag("use_sliding_window") or read.config.get("sliding_window", 4096) is None:
        return {}
    layers, first = read.count("num_hidden_layers"), read.count("max_window_layers", 28, least=0)
    kinds = read.layer_kinds(tuple(FULL if layer < first else SLIDING for layer in range(layers)))
    return _windows(read, kinds, 4096)


def _smollm3(read: Reader) -> dict[str, Any]:
    """Llama, without rotary positions in some layers. `no_rope_layers` has a 0 for each of these."""
    layers, every = read.count("num_hidden_layers"), read.count("no_rope_layer_interval", 4)
    turns = read.config.get("no_rope_layers")
    if turns is None:
        turns = [int((layer + 1) % every != 0) for layer in range(layers)]
    if not isinstance(turns, list) or len(turns) < layers or any(turn not in (0, 1) for turn in turns):
        read.fail(f"no_rope_layers is {turns!r}; it must be a list with a 0 or a 1 for each layer")
    slides = read.flag("use_sliding_window") and read.config.get("sliding_window") is not None
    kinds = read.layer_kinds(tuple(FULL if turn or not slides else SLIDING for turn in turns[:layers]))
    rope = rope_of(read, None)
    return _biases(read) | {
        "rope": rope,
        "layer_ropes": tuple(rope if turn else None for turn in turns[:layers]),
        **(_windows(read, kinds, None) if slides else {}),
    }


def _olmo2(read: Reader) -> dict[str, Any]:
    """Norms after attention and the feed-forward layer, and one norm over all heads of the queries or keys."""
    return _biases(read) | _OLMO | {"rope": rope_of(read, None)}


def _olmo3(read: Reader) -> dict[str, Any]:
    """OLMo 2 with sliding windows in three of four layers, and a stretched context in the others."""
    if not read.config.get("rope_parameters") and (theta := read.positive("rope_theta")) != 500_000:
        read.fail(
            f"rope_theta is {theta}, which transformers 4 and 5 read differently; give rope_parameters by layer type"
        )
    kinds = read.layer_kinds(_every(read, 4))
    ropes = ropes_by_kind(read, "rope_theta")
    return _OLMO | {
        **_biases(read),
        "rope": ropes[FULL],
        "layer_ropes": tuple(ropes[kind] for kind in kinds),
        **_windows(read, kinds, 4096),
    }


_OLMO = {"norms": "after", "qk_norm": True, "qk_norm_whole": True}
_OLMO_NAMES = {
    "attention_out_norm/scale": "post_attention_layernorm.weight",
    "mlp_out_norm/scale": "post_feedforward_layernorm.weight",
}


def _gemma3(read: Reader) -> dict[str, Any]:
    """Four norms in a layer, whose scale is 1 + w, scaled embeddings, and windows in five of six layers."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        read.refuse(name, "soft-capping is not computed")
    read.refuse("use_bidirectional_attention", "only causal attention is computed")
    hidden, head_dim = read.count("hidden_size"), read.count("head_dim", 256)
    kinds = read.layer_kinds(_every(read, read.count("sliding_window_pattern", 6)))
    ropes = ropes_by_kind(read, "rope_local_base_freq")
    return {
        "norms": "around",
        "norm_offset": 1.0,
        "qk_norm": True,
        **_biases(read),
        "embed_scale": hidden**0.5,
        "query_scale": (head_dim / read.count("query_pre_attn_scalar", 256)) ** 0.5,
        "rope": ropes[FULL],
        "layer_ropes": tuple(ropes[kind] for kind in kinds),
        **_windows(read, kinds, 4096),
    }


_GEMMA_NAMES = {
    "attention_out_norm/scale": "post_attention_layernorm.weight",
    "post_attention_norm/scale": "pre_feedforward_layernorm.weight",
    "mlp_out_norm/scale": "post_feedforward_layernorm.weight",
}


def _phi3(read: Reader) -> dict[str, Any]:
    """Fused projections, and rotary positions in a part of each head. Phi-4-mini is one of them."""
    head_dim = read.count("head_dim", read.count("hidden_size") // read.count("num_attention_heads"))
    window = read.config.get("sliding_window")
    window = None if window is None else read.count("sliding_window")
    return {"rope": phi_rope(read, head_dim), "sliding_window": window}


_PHI_FUSED = {
    "self_attn.qkv_proj.weight": ("attention/q", "attention/k", "attention/v"),
    "mlp.gate_up_proj.weight": ("mlp/gate", "mlp/up"),
}
_PHI_CODE = frozenset({"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM", "Xenova/gpt-4o"})


def _every(read: Reader, count: int) -> tuple[str, ...]:
    """The kinds of layers of which each `count`-th one is full, and the others slide."""
    return tuple(SLIDING if (i + 1) % count else FULL for i in range(read.count("num_hidden_layers")))


def _windows(read: Reader, kinds: tuple[str, ...], default: int | None) -> dict[str, Any]:
    """The window, and the layers that have one."""
    if SLIDING not in kinds:
        return {}
    return {
        "sliding_window": read.count("sliding_window", default),
        "layer_slides": tuple(kind == SLIDING for kind in kinds),
    }


FAMILIES = {
    family.name: family
    for family in (
        Family("Llama", "llama", _llama, "Llama 2 and 3.x", grouped=False),  # Llama 1 had no grouped heads
        Family("Qwen2", "qwen2", _qwen2, "Qwen2 and Qwen2.5"),
        Family("Qwen3", "qwen3", _qwen3, "Qwen3", head_dim=128),
        Family("Mistral", "mistral", _mistral, "Mistral"),
        Family("SmolLM3", "smollm3", _smollm3, "SmolLM3", tied=True),
        Family("Olmo2", "olmo2", _olmo2, "OLMo 2", names=_OLMO_NAMES, grouped=False, classifies=False),
        Family("Olmo3", "olmo3", _olmo3, "OLMo 3", names=_OLMO_NAMES, grouped=False, classifies=False),
        Family(
            "Gemma3",
            "gemma3_text",
            _gemma3,
            "Gemma 3 (text)",
            names=_GEMMA_NAMES,
            head_dim=256,
            activation=("hidden_activation", "gelu_pytorch_tanh"),
            tied=True,
            classifies=False,
        ),
        Family("Phi3", "phi3", _phi3, "Phi-3 and Phi-4-mini", fused=_PHI_FUSED, grouped=False, code=_PHI_CODE),
    )
}
SUPPORTED = ", ".join(family + CAUSAL_LM for family in FAMILIES)


def family_of(read: Reader) -> Family:
    """The family of a model. Refuses models that need code or layers that gadjax does not have."""
    config = read.config
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) and len(architectures) == 1 else [None]
    name = str(named[0])
    family = FAMILIES.get(name.removesuffix(CAUSAL_LM).removesuffix(TOKEN_CLASSIFICATION))
    code = config.get("auto_map")
    if code and not (family and isinstance(code, dict) and family.code.issuperset(map(str, code.values()))):
        read.fail("auto_map asks for trust_remote_code; code from a checkpoint is never run")
    if config.get("quantization_config"):
        read.fail("quantization_config: quantised weights are not supported; take the unquantised checkpoint")
    if named[0] is None:
        read.fail(f"architectures is {architectures!r}; it must name one of {SUPPORTED}")
    if family is None or name not in (family.name + CAUSAL_LM, family.name + TOKEN_CLASSIFICATION):
        read.fail(f"architecture {name} is not supported; supported are {SUPPORTED}")
    # transformers picks its class by model_type, so the two must agree.
    if config.get("model_type", family.model_type) != family.model_type:
        read.fail(f"model_type {config['model_type']!r} does not belong to the architecture {name}")
    return family
