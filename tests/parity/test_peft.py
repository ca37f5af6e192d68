"""Adapters against PEFT on transformers' models: exports that it loads, outputs, gradients and where they start."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from gadjax.models import lora  # noqa: E402
from gadjax.models.adapters import Adapters, merged_params  # noqa: E402
from gadjax.models.architecture import Lora  # noqa: E402
from gadjax.models.hf_tensors import HF_TENSORS  # noqa: E402
from gadjax.models.model import Model  # noqa: E402
from gadjax.models.save import save_pretrained  # noqa: E402
from gadjax.models.weights import load_params, named_leaves, read_hf_config  # noqa: E402
from tests.parity.transformers_models import CONFIGS, SMALL, classifier  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compile")

TOLERANCE = 2e-4
LORA = Lora(rank=3, alpha=4.5)
FAMILIES = {
    "Llama": dict(tie_word_embeddings=False),
    "Qwen2": dict(tie_word_embeddings=True),
    "Qwen3": dict(head_dim=12),
    "Mistral": dict(sliding_window=None),
    "Gemma3": dict(head_dim=12),
}
LENGTHS = (17, 5, 11)
TASKS = {"generator": "CausalLM", "discriminator": "TokenClassification"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models: threads get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path) -> pathlib.Path:
    return write_base(tmp_path / "base", request.param, FAMILIES[request.param])


def write_base(directory: pathlib.Path, family: str, options: dict[str, Any]) -> pathlib.Path:
    """A causal language model, every parameter random."""
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**SMALL | options)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    model.save_pretrained(directory)
    return directory


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, T], random in the padding too, and the mask [B, T] of those that count."""
    tokens = np.random.default_rng(0).integers(0, SMALL["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    return tokens.astype(np.int32), np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def network(directory: pathlib.Path, kind: str) -> tuple[Model, Any, Any, dict[str, Any]]:
    """The model with adapters, its base, random adapters with a random head, and the base's config.json."""
    config, hf_config = read_hf_config(directory)
    model = Model(dataclasses.replace(config, lora=LORA), {"generator": "lm", "discriminator": "score"}[kind])
    abstract, rng = model.abstract_params(), np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), jnp.float32), lora.trained(abstract))
    return model, load_params(directory, config, lora.frozen(abstract)), params, hf_config


def export(directory: pathlib.Path, out: pathlib.Path, kind: str, model: Model, params: Any, hf_config: Any) -> None:
    apart = Adapters(params, LORA, str(directory))
    whole = merged_params(directory, model.config, lora.frozen(model.abstract_params()), apart)
    save_pretrained(out, whole, model.config, hf_config, kind=kind, adapters=apart, max_shard_bytes=30_000)


def class_of(directory: pathlib.Path, kind: str) -> Any:
    """transformers' class for a directory."""
    config, _ = read_hf_config(directory)
    return transformers.AutoModelForCausalLM if kind == "generator" else classifier(config.family.name)


def peer_of(base: pathlib.Path, adapter: pathlib.Path, kind: str, *, trains: bool = False) -> Any:
    options = {"num_labels": 1} if kind == "discriminator" else {}
    model = class_of(base, kind).from_pretrained(base, dtype=torch.float32, **options)
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=trains).eval()


def torch_outputs(model: Any) -> Any:
    """Logits [B, T, V], or scores as [B, T, 1]."""
    tokens, mask = batch()
    return model(input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long()).logits


def outputs_of(model: Model, params: Any) -> jax.Array:
    tokens, mask = batch()
    fields = tokens, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape), mask.astype(np.int32)
    return model.logits(params, *fields) if model.head == "lm" else model.scores(params, *fields)[..., None]


@pytest.mark.parametrize("kind", TASKS)
def test_peft_loads_the_adapter_and_transformers_the_merged_weights(base, tmp_path, kind, recwarn):
    """Outputs and gradients of our adapters are PEFT's, and the merged network's outputs are the same."""
    model, frozen, params, hf_config = network(base, kind)
    export(base, tmp_path / "export", kind, model, params, hf_config)
    weights = np.random.default_rng(2).normal(size=(len(LENGTHS), max(LENGTHS), 1)).astype(np.float32)
    weights *= batch()[1][..., None]

    def loss(params):
        outputs = outputs_of(model, lora.join(frozen, params))
        values = jax.nn.log_softmax(outputs)[..., :1] if kind == "generator" else outputs
        return jnp.sum(values * weights), outputs

    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)

    peer = peer_of(base, tmp_path / "export" / "adapter", kind, trains=True)
    assert not [warning for warning in recwarn if "missing adapter keys" in str(warning.message)]
    expected = torch_outputs(peer)
    counted = batch()[1]
    assert np.abs(outputs - expected.detach().numpy())[counted].max() <= TOLERANCE
    with peer.disable_adapter():
        assert (torch_outputs(peer) - expected).abs()[torch.from_numpy(counted)].max() > 0.1
    values = torch.log_softmax(expected, -1)[..., :1] if kind == "generator" else expected
    (values * torch.from_numpy(weights)).sum().backward()
    trained = {name: p.grad.numpy() for name, p in peer.named_parameters() if p.requires_grad}
    ours = peft_names(gradients)
    assert ours.keys() == trained.keys()
    for name, gradient in ours.items():
        scale = np.abs(trained[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(gradient, trained[name], rtol=2e-3, atol=1e-4 * scale, err_msg=name)

    merged, report = class_of(base, kind).from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(report.values()), report
    assert (torch_outputs(merged) - expected).abs()[torch.from_numpy(counted)].max() <= TOLERANCE
    assert not hasattr(merged, "peft_config"), "the adapter beside it is not added a second time"


def peft_names(params: Any) -> dict[str, np.ndarray]:
    """A trained tree by the names of PEFT's parameters, written without `gadjax.models.adapters`."""
    out = {}
    for path, leaf in named_leaves(params).items():
        module, _, name = path.rpartition("/")
        if module == "score":
            out[f"base_model.model.score.modules_to_save.default.{'weight' if name == 'kernel' else 'bias'}"] = leaf.T
            continue
        linear = HF_TENSORS[f"{module}/kernel"].name.removesuffix(".weight")
        for i, value in enumerate(np.asarray(leaf)):
            matrix = value.reshape(-1, LORA.rank) if name == "lora_a" else value.reshape(LORA.rank, -1)
            letter = name[-1].upper()
            out[f"base_model.model.{linear.format(i)}.lora_{letter}.default.weight"] = matrix.T
    return out


@pytest.mark.parametrize("kind", TASKS)
def test_adapters_of_fused_kernels(tmp_path, kind):
    """Phi's adapters on queries, keys and values become one adapter of PEFT, and so do the gate's and its partner's."""
    base = write_base(tmp_path / "base", "Phi3", {})
    model, frozen, params, hf_config = network(base, kind)
    export(base, tmp_path / "export", kind, model, params, hf_config)
    outputs = np.asarray(jax.jit(outputs_of, static_argnums=0)(model, lora.join(frozen, params)))
    peer = peer_of(base, tmp_path / "export" / "adapter", kind)
    assert {"lora_A": 9, "lora_B": 9}.items() <= {
        name.split(".")[-3]: min(p.shape) for name, p in peer.named_parameters() if "qkv_proj.lora" in name
    }.items()
    merged = class_of(base, kind).from_pretrained(tmp_path / "export")
    for theirs in (peer, merged):
        assert np.abs(outputs - torch_outputs(theirs).detach().numpy())[batch()[1]].max() <= TOLERANCE


def test_auto_classes_find_the_base(base, tmp_path):
    """adapter_config.json is enough."""
    model, frozen, params, hf_config = network(base, "generator")
    export(base, tmp_path / "export", "generator", model, params, hf_config)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "export" / "adapter").eval()
    outputs = np.asarray(outputs_of(model, lora.join(frozen, params)))
    assert np.abs(outputs - torch_outputs(found).detach().numpy())[batch()[1]].max() <= TOLERANCE


def test_files_are_those_that_peft_writes(base, tmp_path):
    """Its own export of the same adapters has the same tensors, and the fields of our config have its values."""
    for kind in TASKS:
        model, _, params, hf_config = network(base, kind)
        export(base, tmp_path / kind, kind, model, params, hf_config)
        peer_of(base, tmp_path / kind / "adapter", kind).save_pretrained(tmp_path / f"{kind}-peft")
        folders = tmp_path / kind / "adapter", tmp_path / f"{kind}-peft"
        ours, theirs = (safetensors.numpy.load_file(folder / "adapter_model.safetensors") for folder in folders)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
        ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in folders)
        for field in ours.keys() - {"modules_to_save", "target_modules"}:
            assert ours[field] == theirs[field], field
        assert set(ours["target_modules"]) == set(theirs["target_modules"])
        assert set(ours["modules_to_save"] or ()) <= set(theirs["modules_to_save"] or ())


def test_adapters_start_like_peft_s(base):
    """The same bounds of A, and zeros in B."""
    model, *_ = network(base, "generator")
    ours = peft_names(lora.trained(jax.jit(model.init)(jax.random.key(0))))
    settings = peft.LoraConfig(r=3, lora_alpha=4.5, task_type="CAUSAL_LM", target_modules="all-linear")
    peer = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), settings)
    theirs = {name: p.detach().numpy() for name, p in peer.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        assert np.abs(value).max() == pytest.approx(np.abs(theirs[name]).max(), rel=0.15), name
