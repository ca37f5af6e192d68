"""How Hugging Face configs are read, and which are refused."""

from __future__ import annotations

import pytest

from gadjax.errors import UserError
from gadjax.models.architecture import ModelConfig, Rope

pytestmark = pytest.mark.quick

WHERE = "model/config.json"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0}


def of_family(name: str, **fields):
    return LLAMA | {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower()} | fields


def read(config: dict) -> ModelConfig:
    return ModelConfig.from_hf(config, WHERE)


def test_llama_in_full():
    config = read(LLAMA | {"rope_theta": 5e5, "tie_word_embeddings": True, "initializer_range": 0.01})
    assert config == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope=Rope(theta=5e5),
        tie_embeddings=True,
        max_position=64,
        initializer_range=0.01,
    )
    assert hash(config) == hash(
        read(LLAMA | {"rope_theta": 5e5, "tie_word_embeddings": True, "initializer_range": 0.01})
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA, (False, False, False)),
        (LLAMA | {"attention_bias": True}, (True, True, False)),
        (of_family("Qwen2"), (True, False, False)),
        (of_family("Qwen2", attention_bias=True), (True, False, False)),
        (of_family("Qwen3"), (False, False, True)),
        (of_family("Qwen3", attention_bias=True), (True, True, True)),
        (of_family("Mistral", attention_bias=True), (False, False, False)),
    ],
)
def test_biases_and_norms(config, expected):
    config = read(config)
    assert (config.qkv_bias, config.output_bias, config.qk_norm) == expected


def test_heads():
    assert read(LLAMA | {"head_dim": 20}).head_dim == 20
    assert read(LLAMA | {"head_dim": None}).head_dim == 8
    assert read(of_family("Qwen3")).head_dim == 128  # transformers' default, at any hidden size
    before_grouped_heads = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert read(before_grouped_heads).num_kv_heads == 4


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({}, Rope(10_000.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, Rope(5e5, "linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}, Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
            Rope(5e5, "linear", 2.0),
        ),
        ({"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}}, Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, Rope(5e5)),
    ],
)
def test_rope_of_transformers_4_and_5(fields, rope):
    assert read(LLAMA | fields).rope == rope


def test_rope_agrees_with_transformers():
    """Fields that are missing, or given in both ways, are read as transformers reads them."""
    transformers = pytest.importorskip("transformers")
    short = {name: value for name, value in LLAMA3_ROPE.items() if name != "original_max_position_embeddings"}
    for fields in (
        {"rope_scaling": short, "rope_theta": 5e5},
        {
            "rope_scaling": {"type": "linear", "factor": 3.0},
            "rope_parameters": LLAMA3_ROPE | {"rope_theta": 7e5},
        },
        {"rope_parameters": {"rope_theta": 3e3}, "rope_theta": 5e5},
    ):
        theirs = transformers.LlamaConfig(**LLAMA | fields).rope_parameters
        ours = read(LLAMA | fields).rope
        assert (ours.kind, ours.theta) == (theirs["rope_type"], theirs["rope_theta"])
        assert ours.factor == theirs.get("factor", 1.0)
        if ours.kind == "llama3":
            assert ours.original_max_position == theirs["original_max_position_embeddings"]


def test_a_token_classifier_is_its_backbone():
    config = read(LLAMA | {"architectures": ["LlamaForTokenClassification"], "num_labels": 1})
    assert config == read(LLAMA)
    assert (config.family.name, config.family.model_type) == ("Llama", "llama")


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (LLAMA | {"sliding_window": 16}, None),
        (of_family("Mistral", sliding_window=16), 16),
        (of_family("Mistral", sliding_window=None), None),
        (of_family("Mistral"), 4096),
        (of_family("Qwen2", sliding_window=16), None),
        (of_family("Qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=2), None),
        (of_family("Qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=1), 16),
        (
            of_family("Qwen3", sliding_window=16, use_sliding_window=True, layer_types=["full_attention"] * 2),
            None,
        ),
        (
            of_family(
                "Qwen3",
                sliding_window=16,
                use_sliding_window=True,
                layer_types=["full_attention", "sliding_attention"],
            ),
            16,
        ),
    ],
)
def test_sliding_window(config, window):
    config = read(config | {"max_position_embeddings": 8192})
    assert config.sliding_window == window
    config.check_length(8192, WHERE)
    assert set(config.windows(8192)) - {None} == {window} - {None}
    assert config.windows(window or 8192) == (None, None)  # attention in so short a sequence is full


def test_which_layers_slide():
    fields = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    assert read(of_family("Qwen2", **fields)).windows(17) == (None, 16)
    assert read(of_family("Mistral", sliding_window=16)).windows(17) == (16, 16)


def test_flops_of_windows():
    """A pair of tokens costs four operations per channel of the heads, in the layers that have it."""
    config = read(of_family("Qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1))
    full = config.forward_flops(100, 5000, 0)
    assert full == config.forward_flops(100, 5000, 0, 5000)
    assert full - config.forward_flops(100, 5000, 0, 1480) == 4 * 32 * (5000 - 1480)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_window_layers": "x"}, "max_window_layers is 'x'; it must be an integer of at least 0"),
        ({"max_window_layers": [1]}, r"max_window_layers is \[1\]; it must be an integer"),
        ({"layer_types": 3}, "layer_types is 3; it must be a list"),
        ({"layer_types": "sliding_attention"}, "layer_types is 'sliding_attention'; it must be a list"),
    ],
)
def test_fields_of_the_window_of_other_types(fields, message):
    with pytest.raises(UserError, match=f"^{WHERE}: {message}"):
        read(of_family("Qwen2", sliding_window=16, use_sliding_window=True, **fields))


def test_more_tokens_than_positions():
    config = read(LLAMA)
    config.check_length(64, WHERE)
    with pytest.raises(UserError, match=rf"{WHERE}: max_position_embeddings is 64, but .* 65 tokens; lower data.max"):
        config.check_length(65, WHERE)
    with pytest.raises(UserError, match=r"but sequences may reach 65 tokens; do this$"):
        config.check_length(65, WHERE, "do this")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification is not supported",
        ),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "architecture Qwen3MoeForCausalLM is not supported"),
        ({"architectures": ["Llama"]}, "architecture Llama is not supported"),
        ({"architectures": None}, "architectures is None"),
        ({"architectures": []}, r"architectures is \[\]"),
        (
            {"model_type": "granite"},
            "model_type 'granite' does not belong to the architecture LlamaForCausalLM",
        ),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Llama"}}, "auto_map asks for trust_remote_code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: quantised weights"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"mlp_bias": "yes"}, "mlp_bias is 'yes'; it must be true or false"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not divisible by num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"num_attention_heads": 6}, "field head_dim is missing"),
        ({"vocab_size": None}, "field vocab_size is missing"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be an integer of at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be an integer"),
        ({"intermediate_size": 4.5}, "intermediate_size is 4.5; it must be an integer"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; it must be a number above 0"),
        ({"rms_norm_eps": None}, "field rms_norm_eps is missing"),
        ({"max_position_embeddings": None}, "field max_position_embeddings is missing"),
        ({"rope_theta": -1}, "rope_theta is -1; it must be a number above 0"),
        ({"rope_scaling": {"type": "xpos"}}, "rope_scaling has the type 'xpos', which is not supported"),
        ({"rope_parameters": YARN | {"factor": 0}}, "factor is 0; it must be a number above 0"),
        ({"rope_parameters": YARN | {"truncate": False}}, "rope_parameters has truncate False; only true"),
        ({"rope_parameters": YARN | {"rope_theta": 1}}, "rope_theta is 1.0; with the type 'yarn' it must be"),
        ({"rope_scaling": {"type": "dynamic"}}, "field factor is missing"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "the type 'longrope', which is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "only one rotary embedding"),
        ({"rope_scaling": {"type": "linear"}}, "field factor is missing"),
        ({"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "must be below high_freq_factor 1.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "partial_rotary_factor is 0.25",
        ),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=f"^{WHERE}: .*{message}"):
        read(LLAMA | fields)


def test_other_families_say_how_many_heads():
    with pytest.raises(UserError, match="field num_key_value_heads is missing"):
        read(of_family("Qwen2", num_key_value_heads=None))
