"""The settings of a step: everything that is neither state nor data."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from gadjax.distill.losses import Aggregation
from gadjax.models.model import Model
from gadjax.rollout.sampler import Sampling


@dataclasses.dataclass(frozen=True)
class Method:
    """What a step needs beside states and data. Hashable: a static argument of jitted functions.

    The fields are the stage's config of the same names (`configs/base.py`), but for these:

    Attributes:
      sampler: the generator over the mesh that it is sampled on; None: the one that it is trained on.
      slots: samples that are decoded at once (`rollout.slots`).
    """

    generator: Model
    sampling: Sampling
    generator_optimizer: optax.GradientTransformation
    discriminator: Model | None = None
    discriminator_optimizer: optax.GradientTransformation | None = None
    sampler: Model | None = None
    slots: int = 0
    num_samples: int = 8
    discriminator_loss: Literal["bt", "ce"] = "bt"
    bt_temperature: float = 1.0
    updates_per_step: int = 1
    ppo_minibatches: int = 1
    ppo_epochs: int = 1
    clip: float = 0.2
    dual_clip: float = 3.0
    kl_coefficient: float = 1e-3
    entropy_coefficient: float = 0.0
    sft_coefficient: float = 0.0
    importance_cap: float = 0.0
    aggregation: Aggregation = "token_mean"
    generator_micro_batches: int = 1
    discriminator_micro_batches: int = 1
    logprob_chunk: int = 1024

    @property
    def updates(self) -> dict[str, int]:
        """Optimizer steps of each network in one step that trains it."""
        return {"generator": self.ppo_minibatches * self.ppo_epochs, "discriminator": self.updates_per_step}
