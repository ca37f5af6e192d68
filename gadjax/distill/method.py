"""The settings of a step: everything that is neither state nor data."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import optax
from ml_collections import ConfigDict

from gadjax.distill.losses import Aggregation
from gadjax.models.model import Model
from gadjax.rollout.sampler import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What a step needs beside states and data. Hashable: a static argument of jitted functions.

    Every field without a default, but for the first three, is a field of the config (docs/config.md describes it): of
    the sections `rollout`, `discriminator` and `gad`, or `logprob_chunk`. `discriminator_loss` is `discriminator.loss`.

    Attributes:
      generator: the policy, on the mesh that it is trained on.
      sampling: how responses are drawn from it.
      sampler: the generator on the mesh that it is sampled on; None: the mesh that it is trained on.
      generator_micro_batches: slices of one update of the generator whose gradients are added up.
      discriminator_micro_batches: the same for the discriminator.
    """

    generator: Model
    sampling: Sampling
    generator_optimizer: optax.GradientTransformation
    discriminator: Model | None = None
    discriminator_optimizer: optax.GradientTransformation | None = None
    sampler: Model | None = None
    generator_micro_batches: int = 1
    discriminator_micro_batches: int = 1
    slots: int
    num_samples: int
    discriminator_loss: Literal["bt", "ce"]
    bt_temperature: float
    updates_per_step: int
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
        values["discriminator_loss"] = config.discriminator.loss
        needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        return cls(**{name: values[name] for name in needed - fields.keys()}, **fields)

    @property
    def updates(self) -> dict[str, int]:
        """Optimizer steps of each network in one step that trains it."""
        return {"generator": self.ppo_minibatches * self.ppo_epochs, "discriminator": self.updates_per_step}
