"""The policy update against TRL's GRPO loss: its own code, from rewards to gradient, on the same tensors.

TRL's `GRPOTrainer` is made without a model: what it would sample, score and compute by a forward pass is handed to it;
its advantages, masks, ratios, clips, KL and reductions are its own. Both sides run in float64 on a table of logits,
whose every entry is a parameter.

TRL's `delta`, the upper bound of the unclipped ratio, is the dual clip where it is above 1 + epsilon. TRL does not
clamp the KL's estimates, so the reference is near enough here for ours never to be clamped.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

from gadjax.config import default_config  # noqa: E402
from gadjax.data.packing import pack  # noqa: E402
from gadjax.distill import state as states  # noqa: E402
from gadjax.distill.losses import group_advantages  # noqa: E402
from gadjax.distill.method import Method  # noqa: E402
from gadjax.rollout.sampler import Sampling  # noqa: E402
from tests.distill.policy import update_against  # noqa: E402
from tests.parity.tables import NO_ADAPTERS, NoAdapters  # noqa: E402

B, N, T, V = 3, 4, 6, 32
EPSILON = {"ours": 1e-6, "trl": 1e-4}  # beside the std of a group
TEMPERATURE = 0.8
PROMPT_LENGTHS = (5, 1, 3)
SAMPLE_LENGTHS = (6, 1, 3, 2, 2, 6, 5, 1, 4, 4, 1, 6)


@pytest.fixture(autouse=True)
def double(quick_compile: None) -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch: samples in the order of their prompts."""

    prompts: list[list[int]]
    samples: list[list[int]]
    rewards: np.ndarray  # [B, N]
    sampled: np.ndarray  # [B * N, T] log-probs at sampling time
    table: np.ndarray  # [V, V] the policy's logits after each token
    reference: np.ndarray  # [V, V]


@pytest.fixture
def case() -> Case:
    rng = np.random.default_rng(0)
    table, noise = rng.normal(size=(2, V, V))
    return Case(
        prompts=[rng.integers(1, V, length).tolist() for length in PROMPT_LENGTHS],
        samples=[rng.integers(1, V, length).tolist() for length in SAMPLE_LENGTHS],
        rewards=rng.normal(size=(B, N)),
        sampled=rng.uniform(-5.5, -1.5, size=(B * N, T)),
        table=0.7 * table,
        reference=0.7 * table + 0.2 * noise,
    )


class Trainer(trl.GRPOTrainer):
    """TRL's trainer with a table for a model. Deliberately without its constructor, which builds everything."""

    def __init__(self, case: Case, loss_type: str, beta: float, *, off_policy: bool):
        self.case, self.table = case, torch.tensor(case.table, requires_grad=True)
        reduced = lambda tensor, reduction: tensor  # noqa: E731
        self.accelerator = types.SimpleNamespace(
            device=torch.device("cpu"), num_processes=1, process_index=0, gather=lambda t: t, reduce=reduced
        )
        self.model, self.ref_model = (
            types.SimpleNamespace(training=training, is_gradient_checkpointing=False) for training in (True, False)
        )
        self.args = types.SimpleNamespace(
            delta=3.0,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=B * N,
            use_bias_correction_kl=False,
        )
        self.current_gradient_accumulation_steps = 1
        self.num_iterations, self.num_generations = 2 if off_policy else 1, N  # more than one: old log-probs are kept
        self.loss_type, self.beta = loss_type, beta
        self.epsilon_low = self.epsilon_high = 0.2
        self.max_completion_length = T
        self.importance_sampling_level, self.scale_rewards = "token", "group"
        self.multi_objective_aggregation = "sum_then_normalize"
        self.reward_funcs, self.reward_func_names, self.reward_weights = [None], ["discriminator"], torch.ones(1)
        self.environment_factories = self.environments = self.off_policy_mask_threshold = None
        self.pad_to_multiple_of = None
        self.top_entropy_quantile = 1.0
        self.tools, self._tokenizer = [], types.SimpleNamespace(pad_token_id=0)
        self.use_vllm = self.mask_truncated_completions = self.aux_loss_enabled = self.log_multimodal = False
        self._entropy_bonus_enabled = False
        self._metrics = {"train": collections.defaultdict(list)}
        self._logs = collections.defaultdict(list, rewards=collections.defaultdict(list))
        self._pending_extra_logs, self._pending_metrics = {}, {}

    def _generate(self, prompts: Any) -> tuple:
        repeated = [prompt for prompt in self.case.prompts for _ in range(N)]
        return repeated, self.case.samples, None, [""] * (B * N), None, {}, None, []

    def _calculate_rewards(self, *_: Any) -> Any:
        return torch.from_numpy(self.case.rewards).reshape(-1, 1)

    def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, *_: Any, **__: Any) -> tuple:
        """The old log-probs are the sampler's; the others are the tables', temperature-scaled as TRL's are."""
        if model is self.model and not torch.is_grad_enabled():
            return torch.from_numpy(self.case.sampled), None, None
        table = self.table if model is self.model else torch.from_numpy(self.case.reference)
        distribution = torch.log_softmax(table[ids[:, -T - 1 : -1]] / TEMPERATURE, dim=-1)
        logprobs = distribution.gather(2, ids[:, -T:, None])[..., 0]
        return logprobs, -(distribution.exp() * distribution).sum(-1), None


def trl_loss(case: Case, loss_type: str, beta: float, *, off_policy: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, gradient of the table and advantages [B, N]."""
    trainer = Trainer(case, loss_type, beta, off_policy=off_policy)
    inputs = trainer._generate_and_score_completions([{"prompt": ""}] * (B * N))
    assert ("old_per_token_logps" in inputs) == off_policy
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), trainer.table.grad.numpy(), inputs["advantages"].reshape(B, N).numpy()


@dataclasses.dataclass(frozen=True)
class Table:
    """A model whose parameters are the logits after each token."""

    params: Any = None
    config: NoAdapters = NO_ADAPTERS
    mesh: None = None

    def bind(self, params: Any) -> Table:
        return Table(params)

    def __call__(self, tokens: Any, positions: Any, segments: Any) -> Any:
        return self.params["logits"][tokens]

    @property
    def head(self) -> Any:
        return jnp.eye(self.params["logits"].shape[-1])


def our_loss(
    case: Case, aggregation: str, kl: float, advantages: np.ndarray, *, off_policy: bool
) -> tuple[float, np.ndarray]:
    """The same of gadjax, packed in two micro-batches. Off the policy: two epochs of an optimizer that stands still."""
    keep_gradient = optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda gradients, state, params: (jax.tree.map(jnp.zeros_like, gradients), gradients),
    )
    method = Method.from_config(
        default_config(),
        generator=Table(),
        sampling=Sampling(T, (0,), temperature=TEMPERATURE),
        generator_optimizer=keep_gradient,
        num_samples=N,
        kl_coefficient=kl,
        aggregation=aggregation,
        ppo_epochs=2 if off_policy else 1,
        generator_micro_batches=2,
    )
    prompts = [np.array(prompt, np.int32) for prompt in case.prompts for _ in range(N)]
    samples = [np.array(sample, np.int32) for sample in case.samples]
    rows = jax.tree.map(lambda leaf: leaf[None], pack(prompts, samples, row_length=20, micro_batches=2))
    update = jax.jit(functools.partial(update_against, method))
    state = states.create({"logits": jnp.array(case.table)}, keep_gradient)
    reference = {"logits": jnp.array(case.reference)}
    state, metrics = update(state, reference, rows, case.sampled[None], advantages)
    return float(metrics["generator/loss"]), np.array(state.opt_state["logits"])


@pytest.mark.parametrize("off_policy", [False, True], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize(
    ("aggregation", "loss_type"),
    [("token_mean", "dapo"), ("token_mean", "bnpo"), ("sequence_mean", "grpo"), ("constant", "dr_grpo")],
)
def test_policy_loss_and_gradient(case, aggregation, loss_type, off_policy):
    beta = 0.3
    loss, gradient, advantages = trl_loss(case, loss_type, beta, off_policy=off_policy)
    ours, our_gradient = our_loss(case, aggregation, beta, advantages, off_policy=off_policy)
    np.testing.assert_allclose(ours, loss, rtol=1e-10)
    np.testing.assert_allclose(our_gradient, gradient, rtol=1e-9, atol=1e-14)
    assert np.linalg.norm(gradient) > 1e-2


def test_advantages(case):
    """The same but for the epsilon: 1e-6 in gadjax (`docs/algorithm.md`, section 3.3), 1e-4 in TRL."""
    _, _, advantages = trl_loss(case, "dapo", 0.0, off_policy=False)
    std = np.std(case.rewards, axis=1, ddof=1, keepdims=True)
    expected = advantages * (std + EPSILON["trl"]) / (std + EPSILON["ours"])
    np.testing.assert_allclose(group_advantages(case.rewards), expected, rtol=1e-7)  # TRL's are float32 in part
