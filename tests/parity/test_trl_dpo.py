"""Stage soda against TRL's DPO loss: its own code, on the same tensors, in float64.

TRL's `DPOTrainer` is made without a model: log-probs come from a table of logits, whose every entry is a parameter.
"""

from __future__ import annotations

import collections
import functools
import types
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
from gadjax.distill.discriminator import update_discriminator  # noqa: E402
from gadjax.distill.method import Method  # noqa: E402
from gadjax.distill.updates import baseline_logprobs  # noqa: E402
from gadjax.rollout.sampler import Sampling  # noqa: E402
from gadjax.setup.blueprint import preferences  # noqa: E402
from tests.parity.test_trl import Table  # noqa: E402

B, T, V, BETA = 3, 6, 32, 0.3
PROMPT_LENGTHS = (5, 1, 3)
LENGTHS = ((6, 1), (3, 2), (2, 5))  # of the teacher's answer and the sample


class Trainer(trl.DPOTrainer):
    """TRL's trainer with a table for a model. Deliberately without its constructor, which builds everything."""

    def __init__(self):
        self.model = types.SimpleNamespace(training=True)
        same = lambda tensor: tensor  # noqa: E731
        self.accelerator = types.SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same)
        self.aux_loss_enabled = self.use_weighting = False
        self.ld_alpha, self.precompute_ref_logps = None, True
        self.f_divergence_type, self.loss_types, self.loss_weights = "reverse_kl", ["sigmoid"], [1.0]
        self.beta, self.label_smoothing = BETA, 0.0
        self._metrics = {"train": collections.defaultdict(list)}
        self._total_train_tokens, self._tp_size = 0, 1


def log_probs(table: Any, ids: Any) -> Any:
    return torch.log_softmax(table[ids[:, :-1]], dim=-1).gather(2, ids[:, 1:, None])[..., 0]


def test_the_loss_and_its_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        table, reference = 0.7 * rng.normal(size=(2, V, V))
        prompts = [rng.integers(1, V, length) for length in PROMPT_LENGTHS]
        answers = [[rng.integers(1, V, length) for length in pair] for pair in LENGTHS]

        # TRL's batch: all chosen answers, then all rejected ones.
        sequences = [np.concatenate([prompts[b], answers[b][side]]) for side in (0, 1) for b in range(B)]
        width = max(map(len, sequences))
        ids = torch.tensor(np.stack([np.pad(sequence, (0, width - len(sequence))) for sequence in sequences]))
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            mask[row, PROMPT_LENGTHS[row % B] : len(sequence)] = 1
        leaf = torch.tensor(table, requires_grad=True)

        def model(input_ids: Any, **_: Any) -> Any:
            nothing = torch.zeros(ids.shape[0], width - 1)
            found = log_probs(leaf, input_ids) * mask[:, 1:]
            return types.SimpleNamespace(
                log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), aux_loss=None
            )

        before = (log_probs(torch.tensor(reference), ids) * mask[:, 1:]).sum(1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
        inputs |= {"ref_chosen_logps": before[:B], "ref_rejected_logps": before[B:]}
        trainer = Trainer()
        loss = trainer._compute_loss(model, inputs, False)
        loss.backward()

        # Ours: pairs of a likelihood discriminator that is the policy, in two micro-batches.
        keep_gradient = optax.GradientTransformation(
            init=lambda params: jax.tree.map(jnp.zeros_like, params),
            update=lambda gradients, state, params: (jax.tree.map(jnp.zeros_like, gradients), gradients),
        )
        config = default_config()
        config.soda.beta = BETA
        method = Method.from_config(
            config,
            generator=Table(),
            discriminator=Table(),
            sampling=Sampling(T, (0,), temperature=0.8),
            generator_optimizer=keep_gradient,
            discriminator_optimizer=keep_gradient,
            **preferences(config),
        )
        repeated = [prompt.astype(np.int32) for prompt in prompts for _ in range(2)]
        flat = [answer.astype(np.int32) for pair in answers for answer in pair]
        rows = pack(repeated, flat, row_length=20, micro_batches=3, group=2, together=True)
        baseline = jax.jit(functools.partial(baseline_logprobs, method))({"logits": jnp.array(reference)}, rows)
        state = states.create({"logits": jnp.array(table)}, keep_gradient)
        update = jax.jit(functools.partial(update_discriminator, method))
        state, _, metrics = update(state, rows, jnp.full(B, 1 / B), baseline)
        np.testing.assert_allclose(metrics["discriminator/loss"], loss.item(), rtol=1e-10)
        np.testing.assert_allclose(state.opt_state["logits"], leaf.grad.numpy(), rtol=1e-9, atol=1e-14)
        (accuracy,) = trainer._metrics["train"]["rewards/accuracies"]
        np.testing.assert_allclose(metrics["discriminator/accuracy"], accuracy)
        assert np.linalg.norm(leaf.grad.numpy()) > 1e-2
