"""The updates of GAD in PyTorch, and a batch for them.

Written from `docs/algorithm.md`, one term after another, and differentiated by autograd; no code is shared with gadjax.
`test_torch_gad.py` compares gadjax with it on tables, `test_torch_models.py` on whole models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import torch

from gadjax.config import default_config
from gadjax.data.packing import pack
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Sampling

B, N, T, V = 4, 3, 6, 40
TEMPERATURE, KL = 0.8, 0.1
PROMPT_LENGTHS = (5, 1, 7, 3)
TEACHER_LENGTHS = (2, 6, 1, 4)
SAMPLE_LENGTHS = ((6, 1, 3), (2, 6, 5), (4, 1, 6), (3, 2, 1))


@dataclasses.dataclass(frozen=True)
class Data:
    """A ragged batch without padding; samples in the order of their prompts, N each."""

    prompts: list[np.ndarray]
    teacher: list[np.ndarray]
    samples: list[np.ndarray]
    sampled: list[np.ndarray]  # log-probs that the sampler recorded
    rewards: np.ndarray  # [B, N]


def ragged_data() -> Data:
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


def rows_of(
    prompts: list[np.ndarray], responses: list[np.ndarray], micro_batches: int, group: int = 1, together: bool = False
) -> Any:
    """Groups share their prompt, as in the trainer."""
    rows = pack(
        prompts,
        responses,
        row_length=2 * (7 + T),
        micro_batches=micro_batches,
        group=group,
        together=together,
        share=True,
    )
    noise = np.random.default_rng(1).integers(0, V, rows.tokens.shape).astype(np.int32)
    return rows.replace(tokens=np.where(rows.segments == 0, noise, rows.tokens))


def group_rows(data: Data, micro_batches: int) -> tuple[Any, np.ndarray]:
    """Teacher, then its samples, for each prompt; and equal weights."""
    responses = []
    for b in range(B):
        responses += [data.teacher[b], *data.samples[b * N : (b + 1) * N]]
    prompts = [prompt for prompt in data.prompts for _ in range(1 + N)]
    return rows_of(prompts, responses, micro_batches, 1 + N, together=True), np.full(B, 1 / B)


def policy_inputs(data: Data, micro_batches: int, dtype: type) -> tuple[Any, np.ndarray, Any]:
    """Rows [1, M, ...] of the samples, their recorded log-probs [1, S, T], rows of the teachers."""
    rows = rows_of([prompt for prompt in data.prompts for _ in range(N)], data.samples, micro_batches, N)
    sampled = np.zeros((B * N, T), dtype)
    for row, recorded in zip(sampled, data.sampled, strict=True):
        row[: len(recorded)] = recorded
    rows = jax.tree.map(lambda leaf: leaf[None], rows)
    return rows, sampled[None], rows_of(data.prompts, data.teacher, micro_batches)


def method_of(generator: Any, discriminator: Any, optimizer: optax.GradientTransformation, **fields: Any) -> Method:
    return Method.from_config(
        default_config(),
        generator=generator,
        sampling=Sampling(T, (2,), temperature=TEMPERATURE),
        generator_optimizer=optimizer,
        discriminator=discriminator,
        discriminator_optimizer=optimizer,
        num_samples=N,
        kl_coefficient=KL,
        **fields,
    )
