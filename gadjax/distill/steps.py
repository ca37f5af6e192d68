"""The kinds of step: SeqKD, SODA, warmup and GAD (`docs/algorithm.md`, sections 2 and 3), each written once.

A step is a sequence of a few parts: sample, lay sequences out as rows, update a network. `Parts` names them; who runs a
step chooses how they run. `PureParts` are pure functions, so that a whole step can be jitted, sampling loop included:

    step = jax.jit(functools.partial(gad_step, PureParts(method)))
    state, metrics, samples = step(state, batch, key)

The trainer (`gadjax.trainer.stage_steps`) runs the same functions with parts that it compiles one by one, times, and
feeds with rows that the host packs in between. A test holds the two equal.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed
from gadjax.distill import updates
from gadjax.distill.discriminator import update_discriminator
from gadjax.distill.method import Baseline, Method
from gadjax.distill.rewards import Advantages, Judgement, Statistics, advantages
from gadjax.distill.rows import Batch, group_rows, one_sequence_a_row, policy_rows, teacher_rows
from gadjax.distill.state import GadState, TrainState
from gadjax.distill.updates import Metrics, Network
from gadjax.models import layouts
from gadjax.models.lora import join
from gadjax.models.model import Params
from gadjax.rollout.sampler import Samples, rollout, row_keys

# The phases of a step, and the measurement on held-out prompts between steps.
# "frozen rollout" samples from the reference.
Phase = Literal["rollout", "frozen rollout", "discriminator", "reference", "generator", "measure"]


def gad_step(
    parts: Parts,
    state: GadState,
    batch: Batch,
    key: jax.Array,
    *,
    train_generator: bool = True,
    train_discriminator: bool = True,
) -> tuple[GadState, Metrics, Samples]:
    """One GAD step (`docs/algorithm.md`, section 3).

    Args:
      parts: how the parts of the step run.
      state: its `reference` is the generator as it entered the stage (section 3.6).
      batch: B prompts with the teacher's responses.
      key: seeds the sampling.
      train_generator: False leaves the generator as it is.
      train_discriminator: False leaves the discriminator as it is; it still gives the rewards.

    Returns:
      The new state, the metrics of the step, and the samples that it drew.
    """
    # The teacher's rows need no samples: the trainer packs them while the generator samples.
    reads_teacher = train_generator and (parts.method.sft_coefficient or parts.method.demonstrations)
    teacher = parts.teacher_rows(batch) if reads_teacher else None

    # 3.1 Rollout: N responses of the generator to each prompt.
    state = parts.begin(state, "rollout")
    samples = parts.sample(state, batch, key)
    policy = parts.policy_rows(batch, samples) if train_generator else None

    # 3.2 Judgement and 3.4 update of the discriminator: what it says before the update decides the rewards.
    state, judged, metrics = _discriminate(parts, state, batch, samples, train=train_discriminator)

    if train_generator:
        # 3.6 Reference: the log-probs that the KL is measured against.
        state = parts.begin(state, "reference")
        reference = parts.reference_logprobs(state, policy)

        # 3.3 Rewards: what the discriminator says, or the user. Their advantages within each prompt's group.
        judged, of_reward = parts.reward(batch, samples, judged)
        given, statistics, of_rewards = parts.advantages(state, judged, samples)

        # 3.5 Update of the generator by the clipped policy gradient with the KL.
        state = parts.begin(state, "generator")
        generator, of_generator = parts.update_policy(state, reference, policy, given, teacher)
        state = state.replace(generator=generator, statistics=statistics)
        metrics |= of_reward | of_rewards | of_generator
    return state, metrics, samples


def warmup_step(
    parts: Parts,
    state: GadState,
    batch: Batch,
    key: jax.Array,
    *,
    train_generator: bool = True,
    train_discriminator: bool = True,
) -> tuple[GadState, Metrics, Samples]:
    """One warmup step: the discriminator learns on the samples of a generator that learns by cross entropy.

    The arguments and the result are those of `gad_step`. The first steps of the stage run with `train_generator` off.
    """
    teacher = parts.teacher_rows(batch) if train_generator else None
    state = parts.begin(state, "rollout")
    samples = parts.sample(state, batch, key)
    state, _, metrics = _discriminate(parts, state, batch, samples, train=train_discriminator)
    if train_generator:
        state, of_generator = _supervise(parts, state, teacher)
        metrics |= of_generator
    return state, metrics, samples


def seqkd_step(
    parts: Parts, state: GadState, batch: Batch, *, train_discriminator: bool = False
) -> tuple[GadState, Metrics]:
    """One SeqKD step: cross entropy on the teacher's responses.

    The arguments are those of `gad_step`; `train_discriminator` teaches a likelihood discriminator the same.
    """
    teacher = parts.teacher_rows(batch)
    state, metrics = _supervise(parts, state, teacher)
    if train_discriminator:
        state = parts.begin(state, "discriminator")
        discriminator, of_discriminator = parts.update_supervised(state, teacher, "discriminator")
        state, metrics = state.replace(discriminator=discriminator), metrics | of_discriminator
    return state, metrics


def soda_step(parts: Parts, state: GadState, batch: Batch, key: jax.Array) -> tuple[GadState, Metrics, Samples]:
    """One step of SODA (arXiv 2604.03873): DPO on the teacher's response and one sample of the frozen student.

    DPO's loss is the pair loss (section 3.4) of a likelihood discriminator that is the policy itself, measured against
    the reference. `parts.method` has the generator in the discriminator's place.

    Args:
      parts: how the parts of the step run.
      state: its `reference` is the generator as it entered the stage.
      batch: B prompts with the teacher's responses.
      key: the same in every step, so that a prompt keeps its sample.
    """
    # One response of the reference to each prompt.
    state = parts.begin(state, "frozen rollout")
    samples = parts.sample(state, batch, key, frozen=True)
    groups = parts.group_rows(batch, samples)

    # The reference's log-probs of both responses.
    state = parts.begin(state, "reference")
    baseline = parts.baseline_logprobs(state, groups, "reference")

    # The update prefers the teacher's response.
    state = parts.begin(state, "generator")
    as_critic = state.replace(discriminator=state.generator)
    generator, _, metrics = parts.update_discriminator(as_critic, groups, baseline, train=True)
    prefix = "discriminator/"
    renamed = {"generator/" + name.removeprefix(prefix): metrics[name] for name in metrics if name.startswith(prefix)}
    return state.replace(generator=generator), renamed, samples


def _discriminate(
    parts: Parts, state: GadState, batch: Batch, samples: Samples, *, train: bool
) -> tuple[GadState, Judgement, Metrics]:
    """The state after the discriminator's update, its judgement from before it, and metrics."""
    groups, baseline = parts.group_rows(batch, samples), None
    if parts.method.measures_likelihood:
        against = parts.method.discriminator_baseline
        state = parts.begin(state, "reference" if against == "reference" else "generator")
        baseline = parts.baseline_logprobs(state, groups, against)
    state = parts.begin(state, "discriminator")
    discriminator, judged, metrics = parts.update_discriminator(state, groups, baseline, train=train)
    return state.replace(discriminator=discriminator), judged, metrics


def _supervise(parts: Parts, state: GadState, teacher: Any) -> tuple[GadState, Metrics]:
    """The state after one cross-entropy update of the generator, and metrics."""
    state = parts.begin(state, "generator")
    generator, metrics = parts.update_supervised(state, teacher, "generator")
    return state.replace(generator=generator), metrics


class Parts(Protocol):
    """What a step is made of. Rows may be of any type that the updates of the same `Parts` understand."""

    @property
    def method(self) -> Method:
        """The settings of the step."""

    def begin(self, state: GadState, phase: Phase) -> GadState:
        """The state with its arrays where a phase of the step needs them.

        The trainer moves arrays between the devices and host memory (`config.offload`), and times the phase.
        """

    def sample(self, state: GadState, batch: Batch, key: jax.Array, *, frozen: bool = False) -> Samples:
        """N responses of the generator to each prompt, or of the reference if `frozen`."""

    def teacher_rows(self, batch: Batch) -> Any:
        """The teacher's responses, for `update_supervised` and `update_policy`."""

    def policy_rows(self, batch: Batch, samples: Samples) -> Any:
        """The samples, for `reference_logprobs` and `update_policy`."""

    def group_rows(self, batch: Batch, samples: Samples) -> Any:
        """The teacher's response and the samples of each prompt, for `update_discriminator`."""

    def baseline_logprobs(self, state: GadState, groups: Any, policy: Baseline) -> Any:
        """The log-probs of the groups' tokens under the reference, or the policy as it is."""

    def update_discriminator(
        self, state: GadState, groups: Any, baseline: Any, *, train: bool
    ) -> tuple[TrainState, Judgement, Metrics]:
        """The discriminator after its updates, if `train`; its judgement of the batch before them; and metrics."""

    def reward(self, batch: Batch, samples: Samples, judged: Judgement) -> tuple[Judgement, Metrics]:
        """The judgement that rewards are made of: the discriminator's, or with the user's rewards in it; metrics."""

    def reference_logprobs(self, state: GadState, policy: Any) -> jax.Array:
        """The reference's log-probs of the samples."""

    def advantages(
        self, state: GadState, judged: Judgement, samples: Samples
    ) -> tuple[Advantages, Statistics | None, Metrics]:
        """The advantages of the samples and of demonstrations, the statistics of the rewards so far, and metrics."""

    def update_policy(
        self, state: GadState, reference: jax.Array, policy: Any, given: Advantages, teacher: Any
    ) -> tuple[TrainState, Metrics]:
        """The generator after its policy-gradient updates on the advantages, and metrics."""

    def update_supervised(self, state: GadState, teacher: Any, network: Network) -> tuple[TrainState, Metrics]:
        """A network after one cross-entropy update, and metrics."""


@dataclasses.dataclass(frozen=True)
class PureParts:
    """The parts as pure functions, with one sequence a row. A step over them can be jitted whole."""

    method: Method

    def begin(self, state: GadState, phase: Phase) -> GadState:
        return state

    def sample(self, state: GadState, batch: Batch, key: jax.Array, *, frozen: bool = False) -> Samples:
        params = state.reference if frozen else state.generator.params
        return sample(self.method, params, batch, key, base=state.base)

    def teacher_rows(self, batch: Batch) -> Packed:
        return teacher_rows(self.method, batch, one_sequence_a_row)

    def policy_rows(self, batch: Batch, samples: Samples) -> tuple[Packed, jax.Array]:
        return policy_rows(self.method, batch, samples, one_sequence_a_row)

    def group_rows(self, batch: Batch, samples: Samples) -> tuple[Packed, jax.Array]:
        groups = samples.lengths.shape[0]
        rows = group_rows(self.method, batch, samples.tokens, samples.lengths, one_sequence_a_row)
        return rows, jnp.full(groups, 1.0 / groups)

    def baseline_logprobs(self, state: GadState, groups: tuple[Packed, jax.Array], policy: Baseline) -> jax.Array:
        params = state.reference if policy == "reference" else state.generator.params
        return updates.baseline_logprobs(self.method, params, groups[0], base=state.base)

    def update_discriminator(
        self, state: GadState, groups: tuple[Packed, jax.Array], baseline: jax.Array | None, *, train: bool
    ) -> tuple[TrainState, Judgement, Metrics]:
        return update_discriminator(self.method, state.discriminator, *groups, baseline, base=state.base, train=train)

    def reward(self, batch: Batch, samples: Samples, judged: Judgement) -> tuple[Judgement, Metrics]:
        return judged, {}

    def reference_logprobs(self, state: GadState, policy: tuple[Packed, jax.Array]) -> jax.Array:
        return updates.reference_logprobs(self.method, state.reference, policy[0], base=state.base)

    def advantages(
        self, state: GadState, judged: Judgement, samples: Samples
    ) -> tuple[Advantages, Statistics | None, Metrics]:
        return advantages(self.method, judged, samples.logprobs, samples.lengths, state.statistics)

    def update_policy(
        self,
        state: GadState,
        reference: jax.Array,
        policy: tuple[Packed, jax.Array],
        given: Advantages,
        teacher: Packed | None,
    ) -> tuple[TrainState, Metrics]:
        return updates.update_policy(
            self.method,
            state.generator,
            reference,
            *policy,
            given.samples,
            teacher,
            given.demonstrations,
            base=state.base,
        )

    def update_supervised(self, state: GadState, teacher: Packed, network: Network) -> tuple[TrainState, Metrics]:
        trained = getattr(state, network)
        return updates.update_supervised(self.method, trained, teacher, base=state.base, network=network)


def sample(method: Method, params: Params, batch: Batch, key: jax.Array, *, base: Params | None = None) -> Samples:
    """N responses to each prompt of a batch, from the parameters that are trained.

    The trainer compiles `decoding_params` and `sample_batch` apart: the meshes of training and sampling may differ.
    """
    return sample_batch(method, decoding_params(method, params, base=base), batch, key)


def decoding_params(method: Method, params: Params, *, base: Params | None = None) -> Params:
    """The generator's parameters as the token loop reads them."""
    sampler = method.sampler or method.generator
    return layouts.decoding_params(sampler, join(base, params), method.generator.mesh)


def sample_batch(method: Method, params: Params, batch: Batch, key: jax.Array) -> Samples:
    """N responses to each prompt of a batch, from `decoding_params`. Each prompt draws with a key of its own."""
    model = method.sampler or method.generator
    keys = row_keys(key, batch["row"])
    prompt = batch["prompt"], batch["prompt_length"]
    return rollout(model, params, *prompt, keys, method.num_samples, method.sampling, method.slots)[0]
