"""The families of decoders: how their configs are read, which are refused, and how their weights come and go."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.kernels import choose
from gadjax.models.architecture import ModelConfig
from gadjax.models.families import FAMILIES
from gadjax.models.hf_tensors import tensors_of
from gadjax.models.model import Model
from gadjax.models.rope import Rope
from gadjax.models.save import save_pretrained
from gadjax.models.weights import Checkpoint, check_weights, load_params, named_leaves
from gadjax.parallel.mesh import make_mesh
from gadjax.planning.flops import count_flops
from tests.models.written_checkpoints import assert_equal

WHERE = "model/config.json"
COMMON = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 3.0]}
OWN = {
    "SmolLM3": {"rope_theta": 5e6},
    "Olmo2": {"rope_theta": 5e5},
    "Olmo3": {"rope_theta": 5e5},
    "Gemma3": {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "Phi3": {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "rope_scaling": LONGROPE},
}


def config_of(name: str, **fields) -> dict:
    family = FAMILIES[name]
    start = {"architectures": [f"{name}ForCausalLM"], "model_type": family.model_type}
    return start | COMMON | OWN.get(name, {}) | fields


def read(name: str, **fields) -> ModelConfig:
    return ModelConfig.from_hf(config_of(name, **fields), WHERE)


def test_smollm3_leaves_positions_out_of_some_layers():
    rope = Rope(5e6)
    config = read("SmolLM3", no_rope_layers=[1, 0, 1, 1])  # a longer list than there are layers
    assert config.ropes == (rope, None, rope)
    assert config.tie_embeddings and config.sliding_window is None
    assert read("SmolLM3", num_hidden_layers=5).ropes == (rope, rope, rope, None, rope)
    assert read("SmolLM3", no_rope_layer_interval=2).ropes == (rope, None, rope)
    windowed = {"use_sliding_window": True, "sliding_window": 16, "no_rope_layer_interval": 2}
    assert read("SmolLM3", **windowed).windows(64) == (None, 16, None)
    assert read("SmolLM3", **windowed, no_rope_layers=[1, 1, 1]).sliding_window is None


def test_olmo():
    config = read("Olmo2", num_key_value_heads=None)
    assert (config.norms, config.qk_norm_whole, config.num_kv_heads) == ("after", True, 4)
    assert config.ropes == (Rope(5e5),) * 3 and not config.tie_embeddings
    config = read("Olmo3", num_hidden_layers=5, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    full = Rope(5e5, "yarn", 4.0, original_max_position=64, attention_factor=0.1 * math.log(4) + 1)
    assert config.ropes == (Rope(5e5),) * 3 + (full, Rope(5e5))
    assert config.windows(5000) == (4096,) * 3 + (None, 4096)
    assert read("Olmo3", layer_types=["full_attention"] * 3).sliding_window is None


def test_gemma3():
    config = read("Gemma3", num_hidden_layers=7, query_pre_attn_scalar=64, rope_scaling={"type": "linear", "factor": 8})
    local, full = Rope(1e4), Rope(1e6, "linear", 8.0)
    assert config.ropes == (local,) * 5 + (full, local)
    assert (config.norms, config.norm_offset, config.activation) == ("around", 1.0, "gelu_pytorch_tanh")
    assert (config.head_dim, config.query_scale, config.embed_scale) == (256, 2.0, 32**0.5)
    assert config.tie_embeddings and config.windows(5000) == (4096,) * 5 + (None, 4096)
    of_5 = {"rope_theta": None, "rope_local_base_freq": None}
    parameters = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert read("Gemma3", **of_5, rope_parameters=parameters, layer_types=kinds).ropes == (Rope(1e6), local, local)


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_phi3(kind):
    config = read("Phi3", rope_scaling=LONGROPE | {"type": kind}, original_max_position_embeddings=16)
    attention = math.sqrt(1 + math.log(4) / math.log(16))
    factors = (1.0, 1.5, 2.0)
    assert config.rope == Rope(
        1e4, "longrope", original_max_position=16, factors=factors, attention_factor=attention, partial=0.75
    )
    assert config.max_length == 16
    config.check_length(16, WHERE)
    with pytest.raises(UserError, match=r"original_max_position_embeddings is 16, but .* 17 tokens, and LongRoPE"):
        config.check_length(17, WHERE)
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    assert read("Phi3", auto_map=code) == read("Phi3")  # transformers has the class, and the code is not run


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("SmolLM3", {"rope_theta": None}, "field rope_theta is missing"),
        ("SmolLM3", {"no_rope_layers": [1, 0]}, r"no_rope_layers is \[1, 0\]; it must be a list"),
        ("SmolLM3", {"no_rope_layers": [1, 2, 0]}, r"no_rope_layers is \[1, 2, 0\]; it must be a list"),
        ("Olmo2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; only 'silu' is"),
        ("Olmo3", {"layer_types": ["full_attention"] * 2}, "layer_types has 2 entries, but num_hidden_layers is 3"),
        ("Olmo3", {"layer_types": ["chunked_attention"] * 3}, "layer_types has 'chunked_attention', which is not"),
        ("Olmo3", {"rope_theta": 1e4}, "rope_theta is 10000.0, which transformers 4 and 5 read differently"),
        ("Gemma3", {"model_type": "gemma3"}, "model_type 'gemma3' does not belong to .* Gemma3ForCausalLM"),
        ("Gemma3", {"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; soft-capping is not computed"),
        ("Gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; soft-capping"),
        ("Gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; only causal"),
        ("Gemma3", {"rope_parameters": {"rope_theta": 1e6}}, "it must have the embeddings of full_attention and of"),
        ("Phi3", {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear', which is not supported; supported are"),
        ("Phi3", {"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor must be a list of 3 numbers"),
        ("Phi3", {"rope_scaling": LONGROPE | {"long_factor": None}}, "field long_factor is missing"),
        ("Phi3", {"partial_rotary_factor": 0.4}, "partial_rotary_factor is 0.4, which turns 3 of 8 channels"),
        ("Phi3", {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}, "auto_map asks for trust_remote_code"),
        ("Llama", {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}, "auto_map asks for"),
    ],
)
def test_refusals(name, fields, message):
    with pytest.raises(UserError, match=f"^{WHERE}: .*{message}"):
        read(name, **fields)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_tensor_and_comes_back(name, tmp_path: pathlib.Path):
    """Under names of the family, in several files; tensors that hold several parameters are joined and split."""
    fields = config_of(name, head_dim=8)
    config = dataclasses.replace(ModelConfig.from_hf(fields, WHERE), initializer_range=1.0)
    abstract, rng = Model(config).abstract_params(), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract)
    save_pretrained(tmp_path / "out", params, config, fields, kind="generator", max_shard_bytes=20_000)
    check_weights(tmp_path / "out", config, abstract)
    assert_equal(load_params(tmp_path / "out", config, abstract), jax.tree.map(jax.numpy.asarray, params))
    tensors = {spec.name for path, spec in tensors_of(config).items() if path in named_leaves(abstract)}
    layers = sum("{}" in name for name in tensors)
    assert len(Checkpoint(tmp_path / "out", config).shapes) == layers * 3 + len(tensors) - layers


def test_phi_s_tensors_hold_their_parts_in_order(tmp_path: pathlib.Path):
    fields = config_of("Phi3")
    config = ModelConfig.from_hf(fields, WHERE)
    abstract, rng = Model(config).abstract_params(), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract)
    save_pretrained(tmp_path / "out", params, config, fields, kind="generator")
    attention, mlp = (jax.tree.map(lambda leaf: leaf[1], params["layers"][part]) for part in ("attention", "mlp"))
    flat = {
        name: node["kernel"].reshape(32, -1).T for name, node in {**attention, **mlp}.items() if name in "qkv gate up"
    }
    with Checkpoint(tmp_path / "out", config).tensors() as tensor:
        qkv, gate_up = (tensor(f"model.layers.1.{name}_proj.weight")[:] for name in ("self_attn.qkv", "mlp.gate_up"))
    np.testing.assert_array_equal(qkv, np.concatenate([flat["q"], flat["k"], flat["v"]]))
    np.testing.assert_array_equal(gate_up, np.concatenate([flat["gate"], flat["up"]]))


@pytest.mark.parametrize("name", OWN)
def test_flops_are_those_of_the_program(name, monkeypatch):
    """Where every token meets every other and has its logits."""
    monkeypatch.setattr(choose, "attention_backend", lambda *_: "plain")
    config = read(name)
    model, tokens = Model(config), jax.ShapeDtypeStruct((2, 8), np.int32)
    traced = jax.jit(model.logits).trace(model.abstract_params(), tokens, tokens, tokens)
    assert config.forward_flops(16, 2 * 8 * 8, 16) == count_flops(traced.jaxpr, 1)


@pytest.mark.parametrize("page", ["README.md", "docs/faq.md"])
def test_pages_list_all_families(repo, page):
    """In the order of the code, and no other."""
    titles = ", ".join(family.title for family in FAMILIES.values())
    assert titles in " ".join((repo / page).read_text(encoding="utf-8").split())


def test_the_table_of_students_is_that_of_the_code(repo):
    rows = re.findall(
        r"^\| (.+?) \| `(\w+)ForCausalLM` \|", (repo / "docs" / "train.md").read_text("utf-8"), re.MULTILINE
    )
    assert rows == [(family.title, name) for name, family in FAMILIES.items()]


@pytest.mark.parametrize("name", ["Olmo3", "Gemma3", "Phi3"])
@pytest.mark.usefixtures("quick_compile_here")
def test_gradients_over_a_mesh(name):
    """Norms over all heads, windows and fused kernels' parts give the same where heads and rows are split."""
    config = read(name, head_dim=8, sliding_window=5)
    tokens = jax.numpy.asarray(np.random.default_rng(0).integers(0, 40, (4, 12)), np.int32)
    positions, segments = np.broadcast_to(np.arange(12), tokens.shape), np.ones_like(tokens)
    params = Model(dataclasses.replace(config, initializer_range=0.3)).init(jax.random.key(0))

    def gradients(mesh):
        loss = lambda params: jax.numpy.mean(Model(config, mesh=mesh).logits(params, tokens, positions, segments) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-4),
        gradients(make_mesh(2, 2, 2)),
        gradients(None),
    )


def test_the_docs_list_every_family(repo: pathlib.Path):
    text = (repo / "docs" / "train.md").read_text()
    for name, family in FAMILIES.items():
        assert f"| {family.title} | `{name}ForCausalLM` |" in text
