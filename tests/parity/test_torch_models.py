"""The updates of GAD against PyTorch, on whole models.

In float32: transformers with the same weights, one sequence at a time and without padding, through the clip of the
gradient's norm and two steps of AdamW.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gadjax.distill import state as states  # noqa: E402
from gadjax.distill.discriminator import update_discriminator  # noqa: E402
from gadjax.models.architecture import ModelConfig, Rope  # noqa: E402
from gadjax.models.model import Model  # noqa: E402
from tests.distill.policy import update_against  # noqa: E402
from tests.parity.torch_oracle import (  # noqa: E402
    B,
    Data,
    N,
    Terms,
    V,
    group_rows,
    method_of,
    oracle_advantages,
    oracle_discriminator_loss,
    oracle_policy_loss,
    policy_inputs,
)

pytestmark = pytest.mark.usefixtures("quick_start")

CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=Rope(theta=100.0),
    qkv_bias=True,
)
ADAMW = dict(b1=0.9, b2=0.99, eps=1e-5, weight_decay=0.1)  # an eps at which rounding does not become a step
LEARNING_RATE, CLIP = 1e-2, 0.2


def random_params(model: Model, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def leaf(path, abstract):
        noise = rng.normal(size=abstract.shape)
        scale = "scale" in jax.tree_util.keystr(path)
        return (1 + 0.2 * noise if scale else 0.3 * noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, model.abstract_params())


def to_torch(params: Any) -> dict[str, np.ndarray]:
    """Our tree under transformers' names. Their linear layers keep [outputs, inputs]."""
    params = jax.tree.map(np.asarray, params)
    out = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    layers, hidden = params["layers"], CONFIG.hidden_size
    for i in range(CONFIG.num_layers):
        prefix = f"model.layers.{i}."
        out[prefix + "input_layernorm.weight"] = layers["input_norm"]["scale"][i]
        out[prefix + "post_attention_layernorm.weight"] = layers["post_attention_norm"]["scale"][i]
        for name in "qkv":
            projection = layers["attention"][name]
            out[prefix + f"self_attn.{name}_proj.weight"] = projection["kernel"][i].reshape(hidden, -1).T
            out[prefix + f"self_attn.{name}_proj.bias"] = projection["bias"][i].reshape(-1)
        out[prefix + "self_attn.o_proj.weight"] = layers["attention"]["o"]["kernel"][i].reshape(-1, hidden).T
        for name in ("gate", "up", "down"):
            out[prefix + f"mlp.{name}_proj.weight"] = layers["mlp"][name]["kernel"][i].T
    if "score" in params:
        out |= {"score.weight": params["score"]["kernel"].T, "score.bias": params["score"]["bias"]}
    else:
        out["lm_head.weight"] = params["lm_head"]["embedding"]
    return out


def torch_model(params: Any) -> Any:
    """transformers' model of the same weights, in evaluation mode."""
    config = transformers.Qwen2Config(
        vocab_size=V,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        rms_norm_eps=CONFIG.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope.theta},
        tie_word_embeddings=False,
        attn_implementation="eager",
        num_labels=1,
    )
    family = transformers.Qwen2ForTokenClassification if "score" in params else transformers.Qwen2ForCausalLM
    model = family(config).eval()
    model.load_state_dict({name: torch.tensor(np.ascontiguousarray(v)) for name, v in to_torch(params).items()})
    return model


def read(model: Any, prompt: np.ndarray, response: np.ndarray) -> Any:
    """The model's output at every position of one sequence, by itself."""
    tokens = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
    return model(input_ids=tokens, use_cache=False).logits[0]


def predictions(model: Any, data: Data, responses: list[np.ndarray]) -> list[Any]:
    """The logits that predict each response's tokens."""
    each = len(responses) // B
    out = []
    for i, response in enumerate(responses):
        prompt = data.prompts[i // each]
        out.append(read(model, prompt, response)[len(prompt) - 1 : -1])
    return out


def torch_optimizer(model: Any) -> Any:
    betas, rest = (ADAMW["b1"], ADAMW["b2"]), {name: ADAMW[name] for name in ("eps", "weight_decay")}
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=betas, **rest)


def torch_step(model: Any, optimizer: Any, loss: Any) -> tuple[dict[str, np.ndarray], float]:
    """One clipped step; returns the gradient before the clip, and its norm."""
    optimizer.zero_grad()
    loss.backward()
    gradient = {name: parameter.grad.clone().numpy() for name, parameter in model.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return gradient, float(norm)


def assert_step_close(state: Any, model: Any, gradient: dict[str, np.ndarray], norm: float, measured: Any) -> None:
    """Our gradient (the trace before AdamW), its norm, and the parameters after the step."""
    np.testing.assert_allclose(measured, norm, rtol=1e-4)
    assert norm > CLIP
    ours = to_torch(state.opt_state[0].trace)
    assert ours.keys() == gradient.keys()
    for name, expected in gradient.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=2e-5 * norm, err_msg=name)
    for name, parameter in to_torch(state.params).items():
        expected = model.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(parameter, expected, rtol=0, atol=5e-3 * LEARNING_RATE, err_msg=name)


def traced_adamw() -> optax.GradientTransformation:
    """The optimizer of a run, after a note of the gradient."""
    return optax.chain(optax.trace(0.0), states.adamw(LEARNING_RATE, clip=CLIP, **ADAMW))


def test_discriminator_steps_of_a_whole_model(data):
    model = Model(CONFIG, "score")
    params = random_params(model, 6)
    peer = torch_model(params)
    peer_optimizer = torch_optimizer(peer)
    method = method_of(None, model, traced_adamw())
    rows, weight = group_rows(data, micro_batches=1)
    update = jax.jit(functools.partial(update_discriminator, method))
    state = states.create(jax.tree.map(jnp.array, params), method.discriminator_optimizer)
    for _ in range(2):
        teacher = torch.stack([read(peer, *pair)[-1, 0] for pair in zip(data.prompts, data.teacher, strict=True)])
        student = [read(peer, data.prompts[i // N], tokens)[-1, 0] for i, tokens in enumerate(data.samples)]
        student = torch.stack(student).reshape(B, N)
        loss = oracle_discriminator_loss(teacher, student, "bt", 1.0)
        state, judged, metrics = update(state, rows, weight)
        np.testing.assert_allclose(judged.scores[:, 1:], student.detach(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(metrics["discriminator/loss"], loss.item(), rtol=1e-4)
        gradient, norm = torch_step(peer, peer_optimizer, loss)
        assert_step_close(state, peer, gradient, norm, metrics["discriminator/grad_norm"])


def test_policy_steps_of_a_whole_model(data):
    """Policy gradient, KL, entropy and cross entropy together, in two micro-batches."""
    model = Model(CONFIG, "lm")
    params, reference = random_params(model, 7), random_params(model, 8)
    peer, peer_reference = torch_model(params), torch_model(reference)
    peer_optimizer = torch_optimizer(peer)
    method = method_of(
        model, None, traced_adamw(), generator_micro_batches=2, entropy_coefficient=0.05, sft_coefficient=0.3
    )
    rows, sampled, teacher_rows = policy_inputs(data, 2, np.float32)
    advantages = oracle_advantages(torch.from_numpy(data.rewards)).float()
    terms = Terms(entropy=0.05, sft=0.3)
    with torch.no_grad():
        reference_logits = predictions(peer_reference, data, data.samples)
    update = jax.jit(functools.partial(update_against, method))
    state = states.create(jax.tree.map(jnp.array, params), method.generator_optimizer)
    for _ in range(2):
        logits, teacher_logits = predictions(peer, data, data.samples), predictions(peer, data, data.teacher)
        loss = oracle_policy_loss(terms, logits, reference_logits, data, advantages, teacher_logits)
        state, metrics = update(state, reference, rows, sampled, advantages.numpy(), teacher_rows)
        np.testing.assert_allclose(metrics["generator/loss"], loss.item(), rtol=1e-4)
        gradient, norm = torch_step(peer, peer_optimizer, loss)
        assert_step_close(state, peer, gradient, norm, metrics["generator/grad_norm"])
