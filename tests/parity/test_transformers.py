"""The decoder against transformers: logits, scores, gradients and exports, on every family and option.

Every parameter is random, norms and biases included; batches are ragged, right-padded with random ids.

The real SmolLM2-135M is taken from the directory that the environment variable GADJAX_SMOLLM2 names, or built
by the shared tool where its packages are installed (`tests/smollm2.py`); otherwise its test is skipped.
"""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gadjax.models.save import save_pretrained  # noqa: E402
from gadjax.rollout.draw import Sampling  # noqa: E402
from gadjax.rollout.sampler import rollout, row_keys  # noqa: E402
from tests.parity.transformers_models import (  # noqa: E402
    LENGTHS,
    LOGITS_TOLERANCE,
    SMALL,
    VARIANTS,
    assert_same_gradients,
    batch,
    classifier,
    load,
    positions_of,
    reference,
    torch_gradients,
    torch_outputs,
)

OLD_CLASSIFIERS = ("llama-mqa-bias-llama3", "qwen2-tied", "qwen3", "mistral")
NEW = ("smollm3", "olmo2", "olmo3", "gemma3", "phi4-mini")


@pytest.fixture(scope="module", autouse=True)
def quick_start():
    """Tiny models: compiling them well costs more than it saves, and threads get in each other's way."""
    threads, optimised = torch.get_num_threads(), jax.config.read("jax_disable_most_optimizations")
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    torch.set_num_threads(threads)
    jax.config.update("jax_disable_most_optimizations", optimised)


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


@pytest.mark.parametrize("variant", [*OLD_CLASSIFIERS, *NEW])
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
    exported, report = classifier(VARIANTS[variant][0]).from_pretrained(tmp_path / "export", output_loading_info=True)
    assert type(exported).__name__ == type(peer).__name__ and exported.config.num_labels == 1
    assert not any(report.values()), report
    exported.train()  # an export's dropout is 0, so that training it on changes nothing by itself
    if not model.config.family.classifies:  # a sequence classifier scores the last token, without the bias
        judge = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
        found = judge(input_ids=torch.from_numpy(tokens[:1]).long()).logits[0, 0] + exported.score.bias[0]
        assert abs(found - expected[0, -1]) <= 1e-5
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


@pytest.mark.parametrize("variant", [*NEW, "mistral-head_dim-tied", "phi3-window"])
def test_greedy_tokens(variant: str, tmp_path: pathlib.Path):
    """The rollout's tokens are those of transformers' `generate`, where no two tokens are nearly as likely."""
    peer, limit = reference(variant), 8
    peer.save_pretrained(tmp_path)
    model, params, _ = load(tmp_path)
    tokens, _ = batch(SMALL["vocab_size"])
    lengths, width = np.minimum(LENGTHS, 20).astype(np.int32), 20
    sampling = Sampling(max_response_length=limit, eos_ids=(SMALL["vocab_size"],), temperature=0.0)

    @jax.jit
    def sample(params):
        keys = row_keys(jax.random.key(0), np.arange(len(lengths), dtype=np.uint32))
        return rollout(model, params, tokens[:, :width], lengths, keys, 1, sampling, 3)[0].tokens

    ours = np.asarray(sample(params)).reshape(len(lengths), limit)
    for row, length, answer in zip(tokens, lengths, ours, strict=True):
        with torch.no_grad():
            prompt = torch.from_numpy(row[None, :length]).long()
            theirs = peer.generate(prompt, do_sample=False, max_new_tokens=limit, pad_token_id=0)[0, length:]
        np.testing.assert_array_equal(answer, theirs)


# What transformers 4 wrote in place of rope_parameters, and what else it called differently.
OF_TRANSFORMERS_4 = {
    "smollm3": {"rope_theta": 500.0, "rope_scaling": None},
    "olmo2": {"rope_theta": 500.0, "rope_scaling": None},
    "olmo3": {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0}},
    "gemma3": {
        "rope_theta": 500.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "sliding_window_pattern": 2,
        "layer_types": None,
    },
    "phi4-mini": {
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.5], "long_factor": [1.0, 2.0, 3.0]},
    },
}


@pytest.mark.parametrize("variant", OF_TRANSFORMERS_4)
def test_new_families_configs_of_transformers_4(variant: str, tmp_path: pathlib.Path):
    """transformers reads such a config too, and so both read the same file."""
    reference(variant).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | OF_TRANSFORMERS_4[variant]))
    model, params, _ = load(tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens, mask = batch(SMALL["vocab_size"])
    logits = jax.jit(model.logits)(params, tokens, positions_of(tokens), mask.astype(np.int32))
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
