"""The losses and gradients of GAD against PyTorch, on tables.

A table's logits and scores are parameters themselves: in float64 every loss and gradient agrees to 1e-9 with the
oracle's, with finite differences beside both.
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

from gadjax.distill import state as states  # noqa: E402
from gadjax.distill import updates  # noqa: E402
from gadjax.distill.discriminator import update_discriminator  # noqa: E402
from gadjax.distill.losses import group_advantages  # noqa: E402
from tests.distill.policy import update_against  # noqa: E402
from tests.parity.tables import NO_ADAPTERS, NoAdapters  # noqa: E402
from tests.parity.torch_oracle import (  # noqa: E402
    TEMPERATURE,
    B,
    Data,
    N,
    T,
    Terms,
    V,
    group_rows,
    method_of,
    oracle_advantages,
    oracle_discriminator_loss,
    oracle_policy_loss,
    oracle_supervised_loss,
    policy_inputs,
)

pytestmark = pytest.mark.usefixtures("quick_start")


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


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
    update = jax.jit(functools.partial(update_discriminator, method))
    run = lambda scores: update(states.create({"scores": jnp.array(scores)}, KEEP_GRADIENT), rows, weight)  # noqa: E731
    state, found, metrics = run(scores)

    leaf = torch.tensor(scores, requires_grad=True)
    teacher = torch.stack([leaf[int(tokens[-1])] for tokens in data.teacher])
    student = torch.stack([leaf[int(tokens[-1])] for tokens in data.samples]).reshape(B, N)
    loss = oracle_discriminator_loss(teacher, student, kind, temperature)
    loss.backward()
    np.testing.assert_allclose(found.scores, torch.cat([teacher[:, None], student], dim=1).detach(), rtol=1e-12)
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
        return jax.jit(functools.partial(update_against, method))

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
