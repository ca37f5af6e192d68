"""The updates of GAD against PyTorch.

The oracle is written from the algorithm page, one term after another, and differentiated by autograd; it shares no
code with gadjax. Two comparisons:

- in float64 on tables, whose logits and scores are parameters themselves: every loss and gradient to 1e-9, with finite
  differences beside both;
- in float32 on whole models: transformers with the same weights, one sequence at a time and without padding, through
  the clip of the gradient's norm and two steps of AdamW.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gadjax.data.packing import pack  # noqa: E402
from gadjax.distill import state as states  # noqa: E402
from gadjax.distill import updates  # noqa: E402
from gadjax.distill.advantages import group_advantages  # noqa: E402
from gadjax.distill.method import Method  # noqa: E402
from gadjax.models.config import ModelConfig, Rope  # noqa: E402
from gadjax.models.model import Model  # noqa: E402
from gadjax.rollout.sampler import Sampling  # noqa: E402
from tests.parity.tables import NO_ADAPTERS, NoAdapters  # noqa: E402

B, N, T, V = 4, 3, 6, 40
TEMPERATURE, KL = 0.8, 0.1
PROMPT_LENGTHS = (5, 1, 7, 3)
TEACHER_LENGTHS = (2, 6, 1, 4)
SAMPLE_LENGTHS = ((6, 1, 3), (2, 6, 5), (4, 1, 6), (3, 2, 1))


@pytest.fixture(scope="module", autouse=True)
def quick_start(quick_compile: None) -> Iterator[None]:
    """Tiny models: compiling them well costs more than it saves, and threads get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@dataclasses.dataclass(frozen=True)
class Data:
    """A ragged batch without padding; samples in the order of their prompts, N each."""

    prompts: list[np.ndarray]
    teacher: list[np.ndarray]
    samples: list[np.ndarray]
    sampled: list[np.ndarray]  # log-probs that the sampler recorded
    rewards: np.ndarray  # [B, N]


@pytest.fixture
def data() -> Data:
    rng = np.random.default_rng(0)
    ids = lambda length: rng.integers(0, V, length).astype(np.int32)  # noqa: E731
    lengths = [length for group in SAMPLE_LENGTHS for length in group]
    return Data(
        prompts=[ids(length) for length in PROMPT_LENGTHS],
        teacher=[ids(length) for length in TEACHER_LENGTHS],
        samples=[ids(length) for length in lengths],
        sampled=[rng.uniform(-6, -1.5, length) for length in lengths],
        rewards=rng.normal(size=(B, N)),
    )


# The oracle: the algorithm page in PyTorch.


def oracle_discriminator_loss(teacher: Any, student: Any, kind: str, temperature: float) -> Any:
    """Sections 1 and 3.4, from scores [B] and [B, N]: the mean over all pairs."""
    pairs = []
    for b in range(B):
        for n in range(N):
            if kind == "bt":
                pairs.append(-torch.log(torch.sigmoid((teacher[b] - student[b, n]) / temperature)))
            else:
                pairs.append(-torch.log(torch.sigmoid(teacher[b])) - torch.log(1 - torch.sigmoid(student[b, n])))
    return torch.stack(pairs).mean()


def oracle_advantages(rewards: Any) -> Any:
    """Section 3.3, [B, N]."""
    return torch.stack([(group - group.mean()) / (group.std(unbiased=True) + 1e-6) for group in rewards])


@dataclasses.dataclass(frozen=True)
class Terms:
    """Settings of the policy loss."""

    on_policy: bool = True
    aggregation: str = "token_mean"
    clip: float = 0.2
    dual_clip: float = 3.0
    kl: float = KL
    entropy: float = 0.0
    sft: float = 0.0


def oracle_policy_loss(
    terms: Terms, logits: list, reference: list, data: Data, advantages: Any, teacher_logits: list
) -> Any:
    """Section 3.5, from the logits [length, V] that predict each sample's tokens, and each teacher's."""
    token_losses = []
    for i, tokens in enumerate(data.samples):
        chosen = torch.from_numpy(tokens).long()[:, None]
        distribution = torch.log_softmax(logits[i] / TEMPERATURE, dim=-1)
        logp = distribution.gather(1, chosen)[:, 0]
        ref = torch.log_softmax(reference[i] / TEMPERATURE, dim=-1).gather(1, chosen)[:, 0].detach()
        old = logp.detach() if terms.on_policy else torch.from_numpy(data.sampled[i]).to(logp)
        ratio, advantage = torch.exp(logp - old), advantages[i // N, i % N]
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - terms.clip, 1 + terms.clip) * advantage)
        if advantage < 0:  # Ye et al., 1912.09729, eq. 5
            objective = torch.maximum(objective, terms.dual_clip * advantage)
        d = (ref - logp).clamp(-20, 20)
        k3 = (torch.exp(d) - d - 1).clamp(-10, 10)
        entropy = -(distribution.exp() * distribution).sum(-1)
        token_losses.append(-objective + terms.kl * k3 - terms.entropy * entropy)
    if terms.aggregation == "token_mean":
        loss = torch.cat(token_losses).mean()
    elif terms.aggregation == "sequence_mean":
        loss = torch.stack([losses.mean() for losses in token_losses]).mean()
    else:
        loss = torch.stack([losses.sum() / T for losses in token_losses]).mean()
    return loss + terms.sft * oracle_supervised_loss(teacher_logits, data)


def oracle_supervised_loss(teacher_logits: list, data: Data) -> Any:
    """Section 3, warmup: the mean over all teacher tokens, at temperature 1."""
    terms = [
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens).long(), reduction="none")
        for logits, tokens in zip(teacher_logits, data.teacher, strict=True)
    ]
    return torch.cat(terms).mean()


# gadjax on the same data: packed rows, with random ids in their padding.


def rows_of(prompts: list[np.ndarray], responses: list[np.ndarray], micro_batches: int) -> Any:
    rows = pack(prompts, responses, row_length=2 * (7 + T), micro_batches=micro_batches)
    noise = np.random.default_rng(1).integers(0, V, rows.tokens.shape).astype(np.int32)
    return rows.replace(tokens=np.where(rows.segments == 0, noise, rows.tokens))


def group_rows(data: Data, micro_batches: int) -> tuple[Any, np.ndarray]:
    """Teacher, then its samples, for each prompt; and equal weights."""
    responses = []
    for b in range(B):
        responses += [data.teacher[b], *data.samples[b * N : (b + 1) * N]]
    prompts = [prompt for prompt in data.prompts for _ in range(1 + N)]
    return rows_of(prompts, responses, micro_batches), np.full((micro_batches, B // micro_batches), 1 / B)


def policy_inputs(data: Data, micro_batches: int, dtype: type) -> tuple[Any, np.ndarray, Any]:
    """Rows [1, M, ...] of the samples, their recorded log-probs [1, M, S, T], rows of the teachers."""
    rows = rows_of([prompt for prompt in data.prompts for _ in range(N)], data.samples, micro_batches)
    sampled = np.zeros((B * N, T), dtype)
    for row, recorded in zip(sampled, data.sampled, strict=True):
        row[: len(recorded)] = recorded
    rows = jax.tree.map(lambda leaf: leaf[None], rows)
    sampled = sampled.reshape(1, micro_batches, -1, T)
    return rows, sampled, rows_of(data.prompts, data.teacher, micro_batches)


def method_of(generator: Any, discriminator: Any, optimizer: optax.GradientTransformation, **fields: Any) -> Method:
    return Method(
        generator=generator,
        sampling=Sampling(T, (2,), temperature=TEMPERATURE),
        generator_optimizer=optimizer,
        discriminator=discriminator,
        discriminator_optimizer=optimizer,
        num_samples=N,
        kl_coefficient=KL,
        **fields,
    )


# Tables.


@dataclasses.dataclass(frozen=True)
class Table:
    """A model whose parameters are its outputs: the logits after each token, or each token's score."""

    config: NoAdapters = NO_ADAPTERS
    mesh: None = None

    def bind(self, params: Any) -> BoundTable:
        return BoundTable(params)

    def scores(self, params: Any, tokens: Any, positions: Any, segments: Any) -> Any:
        return params["scores"][tokens]


@dataclasses.dataclass(frozen=True)
class BoundTable:
    params: Any

    def __call__(self, tokens: Any, positions: Any, segments: Any) -> Any:
        return self.params["logits"][tokens]

    @property
    def head(self) -> Any:
        return jnp.eye(self.params["logits"].shape[-1])


KEEP_GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda gradients, state, params: (jax.tree.map(jnp.zeros_like, gradients), gradients),
)


def table_logits(table: Any, data: Data) -> tuple[list, list]:
    """The logits that predict each sample's tokens, and each teacher's."""
    before = lambda prompt, response: torch.from_numpy(np.append(prompt[-1:], response[:-1])).long()  # noqa: E731
    samples = [table[before(data.prompts[i // N], tokens)] for i, tokens in enumerate(data.samples)]
    return samples, [table[before(*pair)] for pair in zip(data.prompts, data.teacher, strict=True)]


def assert_slopes(loss: Callable[[np.ndarray], float], at: np.ndarray, gradient: np.ndarray) -> None:
    """Central differences along random directions."""
    for seed in range(4):
        direction = np.random.default_rng(seed).normal(size=at.shape)
        direction /= np.linalg.norm(direction)
        slope = (loss(at + 1e-5 * direction) - loss(at - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-6, atol=1e-9)


def test_advantages(double, data):
    expected = oracle_advantages(torch.from_numpy(data.rewards))
    np.testing.assert_allclose(group_advantages(data.rewards), expected, rtol=1e-12)


@pytest.mark.parametrize(("kind", "temperature"), [("bt", 1.0), ("bt", 2.5), ("ce", 1.0)])
def test_discriminator_loss_and_gradient(double, data, kind, temperature):
    method = method_of(Table(), Table(), KEEP_GRADIENT, discriminator_loss=kind, bt_temperature=temperature)
    rows, weight = group_rows(data, micro_batches=2)
    scores = np.random.default_rng(3).normal(size=V)
    update = jax.jit(functools.partial(updates.update_discriminator, method))
    run = lambda scores: update(states.create({"scores": jnp.array(scores)}, KEEP_GRADIENT), rows, weight)  # noqa: E731
    state, found, metrics = run(scores)

    leaf = torch.tensor(scores, requires_grad=True)
    teacher = torch.stack([leaf[int(tokens[-1])] for tokens in data.teacher])
    student = torch.stack([leaf[int(tokens[-1])] for tokens in data.samples]).reshape(B, N)
    loss = oracle_discriminator_loss(teacher, student, kind, temperature)
    loss.backward()
    np.testing.assert_allclose(found, torch.cat([teacher[:, None], student], dim=1).detach(), rtol=1e-12)
    np.testing.assert_allclose(metrics["discriminator/loss"], loss.item(), rtol=1e-12)
    np.testing.assert_allclose(state.opt_state["scores"], leaf.grad, rtol=1e-9, atol=1e-15)
    assert_slopes(lambda scores: float(run(scores)[2]["discriminator/loss"]), scores, leaf.grad.numpy())


POLICY = {
    "paper": Terms(),
    "off_policy": Terms(on_policy=False),
    "off_policy_sequence_mean": Terms(on_policy=False, aggregation="sequence_mean"),
    "off_policy_constant": Terms(on_policy=False, aggregation="constant"),
    "every_term": Terms(entropy=0.3, sft=0.7, kl=0.5),
    "every_term_off_policy": Terms(on_policy=False, clip=0.4, dual_clip=2.0, entropy=0.3, sft=0.7, kl=0.5),
}


@pytest.mark.parametrize("terms", POLICY.values(), ids=POLICY)
def test_policy_loss_and_gradient(double, data, terms):
    """Two micro-batches of unequal token counts. Off the policy: two epochs of an optimizer that stands still."""
    method = method_of(Table(), None, KEEP_GRADIENT, generator_micro_batches=2)
    method = dataclasses.replace(
        method,
        aggregation=terms.aggregation,
        clip=terms.clip,
        dual_clip=terms.dual_clip,
        kl_coefficient=terms.kl,
        entropy_coefficient=terms.entropy,
        sft_coefficient=terms.sft,
    )
    off_policy = dataclasses.replace(method, ppo_epochs=2)
    rows, sampled, teacher_rows = policy_inputs(data, 2, np.float64)
    rng = np.random.default_rng(4)
    table, reference = rng.normal(size=(2, V, V)) * 0.7
    advantages = oracle_advantages(torch.from_numpy(data.rewards))

    leaf = torch.tensor(table, requires_grad=True)
    logits, teacher_logits = table_logits(leaf, data)
    reference_logits, _ = table_logits(torch.from_numpy(reference), data)
    loss = oracle_policy_loss(terms, logits, reference_logits, data, advantages, teacher_logits)
    loss.backward()

    @functools.cache
    def compiled(method):
        return jax.jit(functools.partial(updates.update_policy, method))

    def run(method, table, sampled):
        state = states.create({"logits": jnp.array(table)}, KEEP_GRADIENT)
        teacher = teacher_rows if terms.sft else None
        return compiled(method)(state, {"logits": reference}, rows, sampled, advantages.numpy(), teacher)

    state, metrics = run(method if terms.on_policy else off_policy, table, sampled)
    np.testing.assert_allclose(metrics["generator/loss"], loss.item(), rtol=1e-12)
    np.testing.assert_allclose(state.opt_state["logits"], leaf.grad, rtol=1e-9, atol=1e-14)
    assert leaf.grad.norm() > 1e-2

    if terms.on_policy:  # the loss's value hides its slope there; fixing the old log-probs at this policy's shows it
        sampled = np.zeros_like(sampled)
        for row, tokens, z in zip(sampled.reshape(-1, T), data.samples, logits, strict=True):
            chosen = torch.from_numpy(tokens).long()[:, None]
            row[: len(tokens)] = torch.log_softmax(z / TEMPERATURE, -1).gather(1, chosen)[:, 0].detach()
    value = lambda table: float(run(off_policy, table, sampled)[1]["generator/loss"])  # noqa: E731
    assert_slopes(value, table, leaf.grad.numpy())


def test_the_off_policy_cases_are_off_the_policy(data):
    """The clip and the dual clip each hold some tokens back, and let others pass."""
    table = torch.from_numpy(np.random.default_rng(4).normal(size=(2, V, V))[0] * 0.7)
    logits, _ = table_logits(table, data)
    advantages = oracle_advantages(torch.from_numpy(data.rewards))
    seen = set()
    for i, (z, tokens) in enumerate(zip(logits, data.samples, strict=True)):
        logp = torch.log_softmax(z / TEMPERATURE, -1).gather(1, torch.from_numpy(tokens).long()[:, None])[:, 0]
        for ratio in torch.exp(logp - torch.from_numpy(data.sampled[i])).tolist():
            sign = "+" if advantages[i // N, i % N] > 0 else "-"
            seen.add((sign, int(np.digitize(ratio, [0.8, 1.2, 3.0]))))
    assert seen >= {("+", 0), ("+", 2), ("-", 0), ("-", 2), ("-", 3)}


def test_supervised_loss_and_gradient(double, data):
    method = method_of(Table(), None, KEEP_GRADIENT, generator_micro_batches=4)
    _, _, rows = policy_inputs(data, 4, np.float64)
    table = np.random.default_rng(5).normal(size=(V, V))
    update = jax.jit(functools.partial(updates.update_supervised, method))
    run = lambda table: update(states.create({"logits": jnp.array(table)}, KEEP_GRADIENT), rows)  # noqa: E731
    state, metrics = run(table)

    leaf = torch.tensor(table, requires_grad=True)
    loss = oracle_supervised_loss(table_logits(leaf, data)[1], data)
    loss.backward()
    np.testing.assert_allclose(metrics["generator/loss"], loss.item(), rtol=1e-12)
    np.testing.assert_allclose(state.opt_state["logits"], leaf.grad, rtol=1e-9, atol=1e-14)
    assert_slopes(lambda table: float(run(table)[1]["generator/loss"]), table, leaf.grad.numpy())


# Whole models.

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
    update = jax.jit(functools.partial(updates.update_discriminator, method))
    state = states.create(jax.tree.map(jnp.array, params), method.discriminator_optimizer)
    for _ in range(2):
        teacher = torch.stack([read(peer, *pair)[-1, 0] for pair in zip(data.prompts, data.teacher, strict=True)])
        student = [read(peer, data.prompts[i // N], tokens)[-1, 0] for i, tokens in enumerate(data.samples)]
        student = torch.stack(student).reshape(B, N)
        loss = oracle_discriminator_loss(teacher, student, "bt", 1.0)
        state, scores, metrics = update(state, rows, weight)
        np.testing.assert_allclose(scores[:, 1:], student.detach(), rtol=0, atol=1e-4)
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
    update = jax.jit(functools.partial(updates.update_policy, method))
    state = states.create(jax.tree.map(jnp.array, params), method.generator_optimizer)
    for _ in range(2):
        logits, teacher_logits = predictions(peer, data, data.samples), predictions(peer, data, data.teacher)
        loss = oracle_policy_loss(terms, logits, reference_logits, data, advantages, teacher_logits)
        state, metrics = update(state, reference, rows, sampled, advantages.numpy(), teacher_rows)
        np.testing.assert_allclose(metrics["generator/loss"], loss.item(), rtol=1e-4)
        gradient, norm = torch_step(peer, peer_optimizer, loss)
        assert_step_close(state, peer, gradient, norm, metrics["generator/grad_norm"])
