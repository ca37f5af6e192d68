"""The decoder against transformers: logits, scores, gradients and exports, on every family and option.

Every parameter is random, norms and biases included; batches are ragged, right-padded with random ids.

The real SmolLM2-135M is taken from the directory that the environment variable GADJAX_SMOLLM2 names, or built
by the shared tool where its packages are installed (`tests/smollm2.py`); otherwise its test is skipped.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import safetensors.torch  # noqa: E402

from gadjax.models.model import Model  # noqa: E402
from gadjax.models.save import save_pretrained  # noqa: E402
from gadjax.models.weights import load_params, named_leaves, read_hf_config  # noqa: E402

LOGITS_TOLERANCE = 2e-4
LENGTHS = (29, 7, 1, 16)

# The smallest model that can tell a mistake: three layers, and no two sizes alike.
SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
)
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 500.0}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "llama-mha": ("Llama", dict(num_key_value_heads=4, rope_parameters=DEFAULT_ROPE)),
    "llama-gqa-tied-linear": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LINEAR_ROPE)),
    "llama-mqa-bias-llama3": (
        "Llama",
        dict(num_key_value_heads=1, attention_bias=True, head_dim=22, rope_parameters=LLAMA3_ROPE),
    ),
    "llama-3.2": ("Llama", dict(tie_word_embeddings=True, head_dim=16, rope_parameters=LLAMA3_ROPE)),
    "qwen2": ("Qwen2", dict(rope_parameters=DEFAULT_ROPE)),
    "qwen2-tied": (
        "Qwen2",
        dict(tie_word_embeddings=True, num_key_value_heads=1, rope_parameters=DEFAULT_ROPE),
    ),
    "qwen3": ("Qwen3", dict(head_dim=12, rope_parameters=DEFAULT_ROPE)),
    "qwen3-tied-bias-linear": (
        "Qwen3",
        dict(head_dim=6, tie_word_embeddings=True, attention_bias=True, rope_parameters=LINEAR_ROPE),
    ),
    "mistral": ("Mistral", dict(sliding_window=None, rope_parameters=DEFAULT_ROPE)),
    "mistral-head_dim-tied": (
        "Mistral",
        dict(sliding_window=30, head_dim=14, tie_word_embeddings=True, rope_parameters=LINEAR_ROPE),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def quick_start():
    """Tiny models: compiling them well costs more than it saves, and threads get in each other's way."""
    threads, optimised = torch.get_num_threads(), jax.config.read("jax_disable_most_optimizations")
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    torch.set_num_threads(threads)
    jax.config.update("jax_disable_most_optimizations", optimised)


def reference(variant: str, task: str = "CausalLM", seed: int = 0) -> Any:
    """A transformers model in evaluation mode, every parameter random."""
    family, options = VARIANTS[variant]
    labels = {"num_labels": 1, "classifier_dropout": 0.0} if task == "TokenClassification" else {}
    config = getattr(transformers, f"{family}Config")(**SMALL | options | labels)
    model = getattr(transformers, f"{family}For{task}")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


def batch(vocab_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, T], random in the padding too, and the mask [B, T] of those that count."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (len(LENGTHS), max(LENGTHS)))
    return tokens.astype(np.int32), np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def positions_of(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def torch_outputs(model: Any, tokens: np.ndarray, mask: np.ndarray) -> Any:
    """transformers' logits [B, T, V], or scores as [B, T, 1]."""
    ids, attend = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    return model(input_ids=ids, attention_mask=attend, use_cache=False).logits


def load(directory: pathlib.Path, head: str = "lm") -> tuple[Model, dict[str, Any], dict[str, Any]]:
    config, hf_config = read_hf_config(directory)
    model = Model(config, head)
    return model, load_params(directory, config, model.abstract_params()), hf_config


def torch_gradients(model: Any, directory: pathlib.Path, like: Model) -> dict[str, np.ndarray]:
    """The gradients that autograd left in a transformers model, in gadjax's tree."""
    gradients = {name: p.grad.contiguous() for name, p in model.named_parameters()}
    directory.mkdir()
    safetensors.torch.save_file(gradients, directory / "model.safetensors")
    return load_params(directory, like.config, like.abstract_params())


def assert_same_gradients(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = np.abs(theirs[name]).max()
        assert scale > 0, f"{name}: autograd's gradient is zero, which compares nothing"
        np.testing.assert_allclose(gradient, theirs[name], rtol=2e-3, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generator_logits_gradients_and_export(variant: str, tmp_path: pathlib.Path):
    peer = reference(variant)
    peer.save_pretrained(tmp_path / "source")
    model, params, hf_config = load(tmp_path / "source")
    tokens, mask = batch(SMALL["vocab_size"])
    counted = mask[:, 1:]  # targets that are not padding

    def loss(params):
        logits = model.logits(params, tokens, positions_of(tokens), mask.astype(np.int32))
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(chosen * counted) / counted.sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)

    expected = torch_outputs(peer, tokens, mask)
    assert np.abs(logits - expected.detach().numpy())[mask].max() <= LOGITS_TOLERANCE
    logprobs = torch.log_softmax(expected[:, :-1], -1)
    chosen = logprobs.gather(-1, torch.from_numpy(tokens[:, 1:, None]).long())[..., 0]
    (-chosen[torch.from_numpy(counted)].mean()).backward()
    assert_same_gradients(gradients, torch_gradients(peer, tmp_path / "gradients", model))

    save_pretrained(tmp_path / "export", params, model.config, hf_config, kind="generator", max_shard_bytes=20_000)
    assert len(list((tmp_path / "export").glob("*.safetensors"))) > 1
    exported, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert type(exported) is type(peer)
    assert not any(report.values()), report
    assert (torch_outputs(exported, tokens, mask) - expected).abs()[torch.from_numpy(mask)].max() <= 1e-5


@pytest.mark.parametrize("variant", ["llama-mqa-bias-llama3", "qwen2-tied", "qwen3", "mistral"])
def test_discriminator_scores_gradients_and_export(variant: str, tmp_path: pathlib.Path):
    peer = reference(variant, "TokenClassification")
    peer.save_pretrained(tmp_path / "source")
    model, params, hf_config = load(tmp_path / "source", "score")
    tokens, mask = batch(SMALL["vocab_size"])
    weights = np.random.default_rng(1).normal(size=tokens.shape).astype(np.float32) * mask

    def loss(params):
        scores = model.scores(params, tokens, positions_of(tokens), mask.astype(np.int32))
        return jnp.sum(scores * weights), scores

    gradients, scores = jax.jit(jax.grad(loss, has_aux=True))(params)

    expected = torch_outputs(peer, tokens, mask)[..., 0]
    assert np.abs(scores - expected.detach().numpy())[mask].max() <= LOGITS_TOLERANCE
    (expected * torch.from_numpy(weights)).sum().backward()
    assert_same_gradients(gradients, torch_gradients(peer, tmp_path / "gradients", model))

    save_pretrained(tmp_path / "export", params, model.config, hf_config, kind="discriminator")
    exported, report = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert type(exported) is type(peer) and exported.config.num_labels == 1
    assert not any(report.values()), report
    exported.train()  # an export's dropout is 0, so that training it on changes nothing by itself
    difference = torch_outputs(exported, tokens, mask)[..., 0] - expected
    assert difference.abs()[torch.from_numpy(mask)].max() <= 1e-5


@pytest.mark.parametrize("variant", ["llama-gqa-tied-linear", "llama-3.2", "qwen2", "mistral"])
def test_config_of_transformers_4(variant: str, tmp_path: pathlib.Path):
    peer = reference(variant)
    peer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")  # the name in the oldest ones
    (tmp_path / "config.json").write_text(json.dumps(config))

    model, params, _ = load(tmp_path)
    tokens, mask = batch(SMALL["vocab_size"])
    logits = model.logits(params, tokens, positions_of(tokens), mask.astype(np.int32))
    expected = torch_outputs(peer, tokens, mask).detach().numpy()
    assert np.abs(logits - expected)[mask].max() <= LOGITS_TOLERANCE


def test_sharded_bfloat16_checkpoint(tmp_path: pathlib.Path):
    reference("qwen3").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, params, _ = load(tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens, mask = batch(SMALL["vocab_size"])
    logits = model.logits(params, tokens, positions_of(tokens), mask.astype(np.int32))
    expected = torch_outputs(peer, tokens, mask).detach().numpy()
    assert np.abs(logits - expected)[mask].max() <= LOGITS_TOLERANCE


def test_bfloat16_export_rounds_as_torch_does(tmp_path: pathlib.Path):
    peer = reference("qwen2")
    peer.save_pretrained(tmp_path / "source")
    model, params, hf_config = load(tmp_path / "source")
    save_pretrained(tmp_path / "export", params, model.config, hf_config, kind="generator", dtype="bfloat16")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert exported.dtype == torch.bfloat16
    for (name, ours), theirs in zip(exported.named_parameters(), peer.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16)), name


def test_smollm2_logits(smollm2: pathlib.Path):
    model, params, _ = load(smollm2)
    peer = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    texts = [
        "The capital of France is Paris, and the capital of Italy is",
        "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
        "Water",
    ]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    tokens, _ = batch(model.config.vocab_size)
    tokens = tokens[: len(rows)]
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    mask = np.arange(tokens.shape[1]) < np.array([len(ids) for ids in rows])[:, None]
    logits = model.logits(params, tokens, positions_of(tokens), mask.astype(np.int32))
    with torch.no_grad():
        expected = torch_outputs(peer, tokens, mask).numpy()
    assert np.abs(logits - expected)[mask].max() <= LOGITS_TOLERANCE
