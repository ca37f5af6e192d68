"""What the programs of a run depend on: config, devices and architectures, without data or weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
from ml_collections import ConfigDict

from gadjax.config.check import field_value
from gadjax.data.packing import RowShape
from gadjax.distill import state as states
from gadjax.distill.method import Method
from gadjax.distill.state import GadState, state_shardings
from gadjax.errors import UserError
from gadjax.kernels.choose import Backend, attention_backend, shares_prompts
from gadjax.models import layouts, lora
from gadjax.models.architecture import Lora, ModelConfig
from gadjax.models.model import Model, resolve_dtype
from gadjax.parallel import mesh as meshes
from gadjax.rollout.sampler import Sampling


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """Enough of a run to compile every program of it.

    Attributes:
      config: resolved.
      mesh: of training; `sampler` has the one of sampling.
      eos_ids, pad_id: of the student's tokenizer.
      prompt_width: tokens of the longest prompt that the data has.
      heldout_prompts: that figures are measured on; 0 for none.
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

    def row_length(self, group: int = 1) -> int:
        """Tokens of a packed row, of prompts with so many responses each.

        As the config says, or as many as the longest sequence has. Where attention leaves out what is not seen, those
        of a whole group, so that its prompt stands there once, if a micro-batch may have so many.
        """
        if self.config.row_length:
            return self.config.row_length
        whole = self._group_length(group)
        if self._backend == "blocks" and whole <= self.config.micro_batches.tokens:
            return whole
        return self.sequence_length

    def whole_groups(self, group: int) -> bool:
        """Whether such a row has room for a prompt with all of its responses, each at full length."""
        return self.shares_prompts and self.row_length(group) >= self._group_length(group)

    def row_shape(self, group: int, *, adaptive: bool = True) -> RowShape:
        """How sequences become rows, so many of each prompt."""
        return RowShape(
            self.row_length(group),
            self.row_multiple,
            adaptive=adaptive,
            share=self.shares_prompts,
            whole_groups=self.whole_groups(group),
        )

    def _group_length(self, group: int) -> int:
        return self.prompt_width + group * self.config.data.max_response_length

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence at most: the width of the data's prompts, and max_response_length."""
        return self.prompt_width + self.config.data.max_response_length

    @property
    def row_multiple(self) -> int:
        """Rows of a program come in multiples of this."""
        return meshes.batch_shards(self.mesh)

    @property
    def shares_prompts(self) -> bool:
        """Whether a group's prompt is computed once a row in updates."""
        return shares_prompts(self._backend)

    @property
    def _backend(self) -> Backend:
        return attention_backend(self.mesh, self.generator.config.dtype, self.generator.config.head_dim)

    def sampling(self, temperature: float) -> Sampling:
        """How the student's answers are drawn at a temperature."""
        return Sampling(
            max_response_length=self.config.data.max_response_length,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
            temperature=temperature,
        )


def make_networks(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    student: tuple[ModelConfig, str],
    discriminator: tuple[ModelConfig, str] | None = None,
) -> dict[str, Any]:
    """The fields `generator`, `sampler` and `discriminator` of a `Blueprint`, checked against the mesh.

    Args:
      student, discriminator: an architecture and where it was read; without a discriminator's own, the student's.

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
    return {"generator": generator, "sampler": sampler, "discriminator": network(discriminator or student, "score")}


def adapters(config: Mapping[str, Any]) -> Lora | None:
    """The adapters of a run, None where it trains everything; `config`: a `ConfigDict`, or a run's config.json."""
    rank = field_value(config, "lora.rank")
    return Lora(rank, float(field_value(config, "lora.alpha"))) if rank else None


def make_method(blueprint: Blueprint, stage: str) -> Method:
    """The settings of a stage's steps."""
    config, section = blueprint.config, blueprint.config[stage]
    moments = {name: config.optimizer[name] for name in ("b1", "b2", "eps", "weight_decay")}
    optimizer: Any = functools.partial(states.adamw, **moments, clip=config.optimizer.clip_norm)
    fields = dict(
        generator=blueprint.generator,
        sampler=blueprint.sampler,
        sampling=blueprint.sampling(config.rollout.temperature),
        generator_optimizer=optimizer(section.generator_learning_rate),
        generator_micro_batches=_micro_batches(blueprint, "generator", stage),
    )
    if stage != "gad":  # the generator's update is one optimizer step on the teacher's answers
        fields |= dict(ppo_minibatches=1, ppo_epochs=1)
    if stage != "seqkd":
        fields |= dict(
            discriminator=blueprint.discriminator,
            discriminator_optimizer=optimizer(section.discriminator_learning_rate),
            discriminator_micro_batches=_micro_batches(blueprint, "discriminator", stage),
        )
    return Method.from_config(config, **fields)


def _micro_batches(blueprint: Blueprint, network: str, stage: str) -> int:
    """As the config says, or the fewest that keep a device's rows within `micro_batches.tokens`, all at full length."""
    config = blueprint.config
    if chosen := config.micro_batches[network]:
        return chosen
    groups, samples = config.batch_size, config.rollout.num_samples
    if network == "discriminator":
        replayed = config.discriminator.replay_share if config.discriminator.replay_size else 0.0
        group, share = 1 + samples, 1 / (1 - replayed)  # past groups beside the fresh ones
    elif stage == "gad":
        group, share, groups = samples, 1, groups // config.gad.ppo_minibatches
    else:
        group, share = 1, 1
    shape, alone = blueprint.row_shape(group), blueprint.row_shape(1)
    per_prompt = share * (1 if shape.whole_groups else group)

    def rows(shape: RowShape) -> int:
        return max(1, config.micro_batches.tokens // shape.row_length) * shape.row_multiple

    def fits(parts: int) -> bool:  # the generator's are also of the teacher's answers to all prompts, a row each
        others = network == "discriminator" or config.batch_size <= parts * rows(alone)
        return groups // parts * per_prompt <= rows(shape) and others

    return next(filter(fits, meshes.divisors(groups)), groups)


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
    if stage != "seqkd":
        state = state.replace(discriminator=abstract(method.discriminator, method.discriminator_optimizer))
    if stage == "gad":
        state = state.replace(reference=lora.trained(whole))
    return state


def decoding_weights(blueprint: Blueprint, state: GadState) -> dict[str, Any]:
    """What sampling reads, as `Programs.decoding_params` returns it: a leaf that needs no change is the state's own."""
    model = blueprint.sampler
    shardings = layouts.param_shardings(model, model.mesh, meshes.DECODING_RULES)

    def abstract(leaf, sharding):
        if model.mesh.size == 1 and leaf.dtype == model.config.dtype:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, model.config.dtype, sharding=sharding)

    return jax.tree.map(abstract, lora.join(state.base, state.generator.params), shardings)


def _check_batch(config: ConfigDict, mesh: jax.sharding.Mesh, sampling: jax.sharding.Mesh) -> None:
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
