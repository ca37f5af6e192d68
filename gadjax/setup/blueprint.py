"""What a run's compiled programs depend on: config, devices and architectures, without data or weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax
from ml_collections import ConfigDict

from gadjax.config.check import field_value, keeps_statistics, needs_reference, uses_discriminator
from gadjax.config.method_checks import steps_without_generator
from gadjax.data.packing import RowShape
from gadjax.distill import state as states
from gadjax.distill.method import Method
from gadjax.distill.rewards import Statistics
from gadjax.distill.state import GadState, state_shardings
from gadjax.errors import UserError
from gadjax.extensions import NO_EXTENSIONS, Extensions
from gadjax.kernels.choose import Backend, attention_backend, shares_prompts
from gadjax.models import layouts, lora
from gadjax.models.architecture import Lora, ModelConfig
from gadjax.models.model import Model, resolve_dtype
from gadjax.parallel import mesh as meshes
from gadjax.rollout.sampler import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blueprint:
    """As much of a run as all its programs need to be compiled.

    Attributes:
      config: the resolved config.
      mesh: the mesh of training.
      generator: the student on the mesh of training.
      sampler: the student on the mesh of sampling.
      discriminator: the discriminator on the mesh of training.
      eos_ids: the ids that end a response.
      pad_id: the id at padded positions.
      prompt_width: tokens of the longest prompt in the data.
      heldout_prompts: the number of held-out prompts that figures are measured on.
      extensions: what the user adds to the run in Python.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    generator: Model
    sampler: Model
    discriminator: Model
    eos_ids: tuple[int, ...]
    pad_id: int
    prompt_width: int
    heldout_prompts: int
    extensions: Extensions = NO_EXTENSIONS

    @property
    def sequence_length(self) -> int:
        """The most tokens that a prompt and its response have."""
        return self._group_length(1)

    def row_length(self, group: int = 1) -> int:
        """Tokens of a packed row, for prompts with `group` responses each.

        `config.row_length` if it is set. Otherwise the longest sequence's tokens; or, if the attention's cost grows
        only with the pairs of tokens that see each other, those of a whole group, so that its prompt is in the row
        once, as long as a micro-batch may have so many.
        """
        if self.config.row_length:
            return self.config.row_length
        whole = self._group_length(group)
        return (
            whole if self._backend == "blocks" and whole <= self.config.micro_batches.tokens else self.sequence_length
        )

    def row_shape(self, group: int, *, adaptive: bool = True) -> RowShape:
        """How sequences are packed into rows, for prompts with `group` responses each."""
        length, share = self.row_length(group), shares_prompts(self._backend)
        whole_groups = share and length >= self._group_length(group)
        return RowShape(length, meshes.batch_shards(self.mesh), adaptive, share, whole_groups)

    def sampling(self, temperature: float) -> Sampling:
        """The settings by which the student's responses are drawn at a temperature."""
        return Sampling(
            max_response_length=self.config.data.max_response_length,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
            temperature=temperature,
        )

    def _group_length(self, group: int) -> int:
        """The most tokens of a prompt with `group` responses."""
        return self.prompt_width + group * self.config.data.max_response_length

    @property
    def _backend(self) -> Backend:
        return attention_backend(self.mesh, self.generator.config.dtype, self.generator.config.head_dim)


def make_networks(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    student: tuple[ModelConfig, str],
    discriminator: tuple[ModelConfig, str] | None = None,
) -> dict[str, Any]:
    """The fields `generator`, `sampler` and `discriminator` of a `Blueprint`, checked against the mesh.

    Args:
      config: the resolved config.
      mesh: the mesh of training.
      student: an architecture, and the path that it was read from.
      discriminator: the same; None for the student's.

    Raises:
      UserError: a size of a network, or the batch, does not divide over the mesh.
    """
    dtype = resolve_dtype(config.dtype, meshes.platform(mesh))

    def network(source: tuple[ModelConfig, str], head: Literal["lm", "score"]) -> Model:
        architecture, where = source
        architecture = dataclasses.replace(architecture, dtype=dtype, remat=config.remat, lora=adapters(config))
        model = Model(architecture, head, mesh)
        layouts.check_divides(model, mesh, where)
        return model

    generator = network(student, "lm")
    sampling = layouts.decoding_mesh(generator, mesh, config.mesh.decode_tensor)
    sampler = dataclasses.replace(generator, mesh=sampling)
    layouts.check_divides(sampler, sampling, student[1], "config.mesh.decode_tensor")
    _check_batch(config, mesh, sampling)
    critic = network(discriminator or student, discriminator_head(config))
    return {"generator": generator, "sampler": sampler, "discriminator": critic}


def discriminator_head(config: Mapping[str, Any]) -> Literal["lm", "score"]:
    """The discriminator's head, from a `ConfigDict` or a run's config.json."""
    return "lm" if field_value(config, "discriminator.kind") == "likelihood" else "score"


def adapters(config: Mapping[str, Any]) -> Lora | None:
    """The adapters of a `ConfigDict`, or of a run's config.json; None if all parameters are trained."""
    rank = field_value(config, "lora.rank")
    return Lora(rank, float(field_value(config, "lora.alpha"))) if rank else None


def make_method(blueprint: Blueprint, stage: str) -> Method:
    """The settings of a stage's steps."""
    config, section = blueprint.config, blueprint.config[stage]
    settings = {name: config.optimizer[name] for name in ("b1", "b2", "eps", "weight_decay")}

    def optimizer(network: str) -> optax.GradientTransformation:
        per_step, steps = updates_per_step(config, stage)[network]
        rise, updates = section.rise_steps * per_step, steps * per_step
        peak = section[f"{network}_learning_rate"]
        rate = states.learning_rate(peak, section.schedule, rise=rise, updates=updates)
        return states.adamw(rate, clip=config.optimizer.clip_norm, **settings)

    fields = dict(
        generator=blueprint.generator,
        sampler=blueprint.sampler,
        sampling=blueprint.sampling(config.rollout.temperature),
        generator_optimizer=optimizer("generator"),
        generator_micro_batches=_micro_batches(blueprint, "generator", stage),
        updates_per_step=updates_per_step(config, stage)["discriminator"][0],
    )
    if stage != "gad":  # the generator's update is one optimizer step
        fields |= dict(ppo_minibatches=1, ppo_epochs=1)
    if stage == "soda":
        fields |= preferences(config) | dict(
            discriminator=blueprint.generator,
            discriminator_optimizer=fields["generator_optimizer"],
            discriminator_micro_batches=fields["generator_micro_batches"],
        )
    elif uses_discriminator(config, stage):
        fields |= dict(
            discriminator=blueprint.discriminator,
            discriminator_optimizer=optimizer("discriminator"),
            discriminator_micro_batches=_micro_batches(blueprint, "discriminator", stage),
            pair_loss=blueprint.extensions.discriminator_loss,
        )
    return Method.from_config(config, **fields)


def updates_per_step(config: ConfigDict, stage: str) -> dict[str, tuple[int, int]]:
    """For each network, its updates in a step of the stage, and the steps that update it; 0 steps if epochs decide."""
    section = config[stage]
    generator = config.gad.ppo_minibatches * config.gad.ppo_epochs if stage == "gad" else 1
    discriminator = config.discriminator.updates_per_step if stage in ("warmup", "gad") else 1
    return {
        "generator": (generator, max(section.steps - steps_without_generator(config, stage), 0)),
        "discriminator": (discriminator, section.steps),
    }


def preferences(config: ConfigDict) -> dict[str, Any]:
    """The settings with which the discriminator's update is DPO (`gadjax.distill.steps.soda_step`)."""
    return dict(
        num_samples=1,
        discriminator_kind="likelihood",
        discriminator_beta=config.soda.beta,
        discriminator_baseline="reference",
        baseline_temperature=1.0,
        discriminator_sft_coefficient=0.0,
        discriminator_loss="bt",
        bt_temperature=1.0,
    )


def _micro_batches(blueprint: Blueprint, network: str, stage: str) -> int:
    """The number of micro-batches of a network's update: the config's, or the smallest that keeps to its limit.

    The limit is `config.micro_batches.tokens` in a device's rows, even if every sequence is as long as it can be.
    """
    config = blueprint.config
    if chosen := config.micro_batches[network]:
        return chosen
    # The prompts of an update, the responses to each prompt, and how many times as many there are with replayed ones.
    prompts, samples = config.batch_size, config.rollout.num_samples
    group, times = 1, 1.0
    if network == "discriminator":
        replayed = config.discriminator.replay_share if config.discriminator.replay_size else 0.0
        group, times = 1 + samples, 1 / (1 - replayed)
    elif stage == "soda":
        group = 2  # the teacher's answer and the sample
    elif stage == "gad":
        group, prompts = samples, prompts // config.gad.ppo_minibatches
    shape, alone = blueprint.row_shape(group), blueprint.row_shape(1)
    rows_per_prompt = times * (1 if shape.whole_groups else group)

    def most_rows(shape: RowShape) -> int:
        return max(1, config.micro_batches.tokens // shape.row_length) * shape.row_multiple

    def fits(parts: int) -> bool:
        # The generator also learns from the teacher's answers to all prompts of the batch, one row each.
        answers = config.batch_size if network == "generator" else 0
        return prompts // parts * rows_per_prompt <= most_rows(shape) and answers <= parts * most_rows(alone)

    return next(filter(fits, meshes.divisors(prompts)), prompts)


def abstract_state(blueprint: Blueprint, stage: str) -> GadState:
    """A stage's state as `jax.ShapeDtypeStruct`s in the training layout."""
    method, mesh = make_method(blueprint, stage), blueprint.mesh

    def abstract(model, optimizer):
        shardings = state_shardings(model, optimizer, mesh)
        params = lora.trained(model.abstract_params())
        state = jax.eval_shape(functools.partial(states.create, optimizer=optimizer), params)
        return meshes.with_shardings(state, shardings)

    model = method.generator
    whole = layouts.abstract_params(model, mesh, model.config.dtype)
    state = GadState(abstract(model, method.generator_optimizer), base=lora.frozen(whole))
    if uses_discriminator(blueprint.config, stage):
        state = state.replace(discriminator=abstract(method.discriminator, method.discriminator_optimizer))
    if needs_reference(blueprint.config, stage):
        state = state.replace(reference=lora.trained(whole))
    if keeps_statistics(blueprint.config, stage):
        statistics = jax.eval_shape(Statistics.none)
        everywhere = jax.tree.map(lambda _: meshes.replicated(mesh), statistics)
        state = state.replace(statistics=meshes.with_shardings(statistics, everywhere))
    return state


def decoding_weights(blueprint: Blueprint, state: GadState) -> dict[str, Any]:
    """The shapes of what `Programs.decoding_params` returns. A leaf that sampling reads as it is stays the state's."""
    model = blueprint.sampler
    shardings = layouts.param_shardings(model, model.mesh, meshes.DECODING_RULES)

    def abstract(leaf, sharding):
        if model.mesh.size == 1 and leaf.dtype == model.config.dtype:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, model.config.dtype, sharding=sharding)

    return jax.tree.map(abstract, lora.join(state.base, state.generator.params), shardings)


def _check_batch(config: ConfigDict, mesh: jax.sharding.Mesh, sampling: jax.sharding.Mesh) -> None:
    """Checks that the batch divides over the mesh of training, and the slots of decoding over the mesh of sampling."""
    shards = meshes.batch_shards(mesh)
    if config.batch_size % shards:
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by the {shards} parts that mesh.data * mesh.fsdp "
            f"split it into: use a multiple of {shards}, or give more devices to config.mesh.tensor"
        )
    slots, parts = config.rollout.slots, meshes.batch_shards(sampling)
    if slots % parts:
        raise UserError(
            f"config.rollout.slots {slots} is not divisible by the {parts} parts that the devices of sampling split a "
            f"batch into: use a multiple of {parts}, or 0 for all samples at once"
        )
