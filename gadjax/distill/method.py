"""The settings of a step: everything that is neither state nor data."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import optax
from ml_collections import ConfigDict

from gadjax.distill.losses import Aggregation, PairLoss
from gadjax.models.model import Model
from gadjax.rollout.sampler import Sampling

Baseline = Literal["reference", "policy"]
Pooling = Literal["last", "mean"]
Whitening = Literal["group", "batch", "running"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What a step needs beside states and data. Hashable: a static argument of jitted functions.

    Every field without a default, but for the first three, is a field of the config (docs/config.md describes it): of
    the sections `rollout`, `discriminator` and `gad`, or `logprob_chunk`. The prefix `discriminator_` stands for that
    section.

    Attributes:
      generator: the policy, on the mesh that it is trained on.
      sampling: how responses are drawn from it.
      sampler: the generator on the mesh that it is sampled on; None: the mesh that it is trained on.
      generator_micro_batches: slices of one update of the generator whose gradients are added up.
      discriminator_micro_batches: the same for the discriminator.
      pair_loss: the loss of a pair of a teacher's answer and a sample; None: that of `discriminator_loss`.
      baseline_temperature: of the log-probs that a likelihood discriminator is measured against; None: the sampling's,
        since samples are drawn from that distribution.
    """

    generator: Model
    sampling: Sampling
    generator_optimizer: optax.GradientTransformation
    discriminator: Model | None = None
    discriminator_optimizer: optax.GradientTransformation | None = None
    sampler: Model | None = None
    generator_micro_batches: int = 1
    discriminator_micro_batches: int = 1
    baseline_temperature: float | None = None
    pair_loss: PairLoss | None = None
    slots: int
    num_samples: int
    discriminator_kind: Literal["score", "likelihood"]
    discriminator_beta: float
    discriminator_baseline: Baseline
    discriminator_pooling: Pooling
    discriminator_sft_coefficient: float
    discriminator_loss: Literal["bt", "ce"]
    bt_temperature: float
    updates_per_step: int
    credit: Literal["sequence", "token"]
    discount: float
    reward: Literal["raw", "bounded"]
    reward_baseline: Baseline
    whitening: Whitening
    reward_clip: float
    length_correction: bool
    demonstrations: float
    demonstration_reward: float
    demonstration_steps: int
    ppo_minibatches: int
    ppo_epochs: int
    clip: float
    dual_clip: float
    kl_coefficient: float
    entropy_coefficient: float
    sft_coefficient: float
    importance_cap: float
    aggregation: Aggregation
    logprob_chunk: int

    @classmethod
    def from_config(cls, config: ConfigDict, **fields: Any) -> Method:
        """The method with these `fields`; every other field is the config's field of the same name."""
        values = {**config, **config.rollout, **config.discriminator, **config.gad}
        values |= {f"discriminator_{name}": value for name, value in config.discriminator.items()}
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        return cls(**{name: values[name] for name in needed - fields.keys()}, **fields)

    @property
    def measures_likelihood(self) -> bool:
        """Whether the discriminator is a language model, whose scores are log-probs against a baseline."""
        return self.discriminator_kind == "likelihood"

    @property
    def values_tokens(self) -> bool:
        """Whether the rewards are made from what the discriminator says of each token."""
        return self.measures_likelihood or self.credit == "token"

    @property
    def updates(self) -> dict[str, int]:
        """Optimizer steps of each network in one step that trains it."""
        return {"generator": self.ppo_minibatches * self.ppo_epochs, "discriminator": self.updates_per_step}
