"""Every program of a run with the arguments that the trainer would give it at full length, as shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed
from gadjax.distill.state import GadState
from gadjax.models.lora import join
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as layout
from gadjax.rollout.sampler import Samples
from gadjax.trainer import host_rows
from gadjax.trainer.blueprint import Blueprint, abstract_state, make_method
from gadjax.trainer.offload import Offload, Phase, read_part
from gadjax.trainer.programs import SAMPLED_FROM, Programs
from gadjax.trainer.replay import past_groups
from gadjax.trainer.stage_steps import row_shape

# The phase of a step before each. A rollout's weights are cast or moved first, in the same phase.
_BEFORE: dict[Phase, Phase] = {
    "rollout": "generator",
    "discriminator": "rollout",
    "reference": "discriminator",
    "generator": "reference",
}


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """One program.

    Attributes:
      name: for people.
      model: the network that it runs, over its mesh.
      stages: of the config, that run it.
      phase: of a step, which says what else is on the devices (`gadjax.trainer.offload`).
      trace: its jitted function, traced.
      arguments: what it is given, with layouts.
      resident: the state that is on the devices while it runs, its own arguments included.
      moved: what comes from host memory before it, and what leaves to there.
      waiting: what is in host memory while it runs.
    """

    name: str
    model: Model
    stages: tuple[str, ...]
    phase: Phase
    trace: Callable[[], jax.stages.Traced]
    arguments: Any
    resident: Any
    moved: Any
    waiting: Any


def run_programs(blueprint: Blueprint) -> Iterator[RunProgram]:
    """The programs of the steps of a run, heaviest stage's state around them; each once, whatever stages share it."""
    stages = blueprint.config.stages
    adversarial = tuple(stage for stage in stages if stage != "seqkd")
    supervised = tuple(stage for stage in stages if stage != "gad" and _trains(blueprint, stage, "generator"))
    if adversarial:
        yield from _sampling(blueprint, adversarial)
        for train in (True, False):
            if alike := tuple(stage for stage in adversarial if _trains(blueprint, stage, "discriminator") == train):
                yield _discriminating(blueprint, alike, train)
    if supervised:
        yield _supervised(blueprint, supervised)
    if "gad" in stages and _trains(blueprint, "gad", "generator"):
        yield from _policy(blueprint)


def _sampling(blueprint: Blueprint, stages: tuple[str, ...]) -> Iterator[RunProgram]:
    programs, state = _of_stage(blueprint, stages[-1])
    common = {"state": state, "blueprint": blueprint}
    if blueprint.mesh.size > 1:  # else they are cast one by one
        arguments = (state.generator.params,)
        place = "weights for sampling", blueprint.sampler, stages, "rollout", programs.decoding_params, arguments
        yield _program(*place, **common)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (decoding_weights(blueprint, state), abstract_batch(blueprint, programs), key)
    sample = "rollout", blueprint.sampler, stages, "rollout", programs.sample_batch, arguments
    yield _program(*sample, **common, own_base=True)


def _discriminating(blueprint: Blueprint, stages: tuple[str, ...], train: bool) -> RunProgram:
    programs, state = _of_stage(blueprint, stages[-1])
    arguments = (state.discriminator, *group_rows(blueprint, programs))
    name, jitted = ("discriminator update", programs.update_discriminator) if train else ("rewards", programs.score)
    static = {"fresh": blueprint.config.batch_size} if train else {}
    model = blueprint.discriminator
    return _program(name, model, stages, "discriminator", jitted, arguments, state, blueprint, **static)


def _supervised(blueprint: Blueprint, stages: tuple[str, ...]) -> RunProgram:
    programs, state = _of_stage(blueprint, stages[-1])
    arguments = (state.generator, teacher_rows(blueprint, programs))
    update = "cross-entropy update", blueprint.generator, stages, "generator", programs.update_supervised, arguments
    return _program(*update, state, blueprint)


def _policy(blueprint: Blueprint) -> Iterator[RunProgram]:
    programs, state = _of_stage(blueprint, "gad")
    common = {"state": state, "blueprint": blueprint}
    rows, sampled = policy_rows(blueprint, programs)
    reference = "reference", blueprint.generator, ("gad",), "reference", programs.reference_logprobs
    yield _program(*reference, (state.reference, rows), **common)
    teacher = teacher_rows(blueprint, programs) if programs.method.sft_coefficient else None
    rewards = _whole(blueprint, (blueprint.config.batch_size, programs.method.num_samples), np.float32)
    before = jax.ShapeDtypeStruct(rows.owner.shape, np.float32, sharding=rows.owner.sharding)
    arguments = (state.generator, before, rows, sampled, rewards, teacher)
    update = "policy update", blueprint.generator, ("gad",), "generator", programs.update_policy, arguments
    yield _program(*update, **common)


def _of_stage(blueprint: Blueprint, stage: str) -> tuple[Programs, GadState]:
    return Programs(make_method(blueprint, stage), blueprint.mesh), abstract_state(blueprint, stage)


def _program(name, model, stages, phase, jitted, arguments, state, blueprint, own_base=False, **static) -> RunProgram:
    """`own_base`: the arguments hold the base already."""
    offload = Offload.of(blueprint.config)
    keywords = static if own_base else static | {"base": state.base}
    again = name == "rollout" and blueprint.mesh.size > 1  # the weights for it came before
    moved = set() if again else offload.on_device(phase) ^ offload.on_device(_BEFORE[phase])
    return RunProgram(
        name=name,
        model=model,
        stages=stages,
        phase=phase,
        trace=lambda: jitted.trace(*arguments, **keywords),
        arguments=arguments if own_base else (*arguments, state.base),
        resident=[*(read_part(state, part) for part in offload.on_device(phase)), state.base],
        moved=[read_part(state, part) for part in moved],
        waiting=[read_part(state, part) for part in offload.waiting(phase)],
    )


def _trains(blueprint: Blueprint, stage: str, network: str) -> bool:
    section = blueprint.config[stage]
    return stage == "seqkd" if "train_generator" not in section else section[f"train_{network}"]


def bytes_per_device(tree: Any) -> int:
    """Of arrays with layouts, on the device that has the most."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if getattr(leaf, "sharding", None) is not None
    )


def decoding_weights(blueprint: Blueprint, state: GadState) -> Params:
    """What sampling reads, as `Programs.decoding_params` returns it: a leaf that needs no change is the state's own."""
    model = blueprint.sampler
    shardings = layout.param_shardings(model, model.mesh, layout.DECODING_RULES)

    def abstract(leaf, sharding):
        if model.mesh.size == 1 and leaf.dtype == model.config.dtype:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, model.config.dtype, sharding=sharding)

    return jax.tree.map(abstract, join(state.base, state.generator.params), shardings)


def abstract_batch(blueprint: Blueprint, programs: Programs) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as `Programs.place_batch` lays it out."""
    rows, batch = layout.rows(programs.decoding_mesh), full_batch(blueprint)
    return {name: jax.ShapeDtypeStruct(batch[name].shape, batch[name].dtype, sharding=rows) for name in SAMPLED_FROM}


def full_batch(blueprint: Blueprint) -> dict[str, np.ndarray]:
    """A host batch whose prompts and answers are all as long as they can be."""
    count, width, limit = blueprint.config.batch_size, blueprint.prompt_width, blueprint.config.data.max_response_length
    return {
        "prompt": np.zeros((count, width), np.int32),
        "prompt_length": np.full(count, width, np.int32),
        "teacher": np.zeros((count, limit), np.int32),
        "teacher_length": np.full(count, limit, np.int32),
        "row": np.zeros(count, np.int32),
    }


def full_samples(blueprint: Blueprint) -> Samples:
    """Samples that are all cut at the limit."""
    shape = blueprint.config.batch_size, blueprint.config.rollout.num_samples
    limit = blueprint.config.data.max_response_length
    return Samples(
        tokens=np.zeros((*shape, limit), np.int32),
        lengths=np.full(shape, limit, np.int32),
        logprobs=np.zeros((*shape, limit), np.float32),
        ended=np.zeros(shape, bool),
    )


def teacher_rows(blueprint: Blueprint, programs: Programs) -> Packed:
    """The rows of a cross-entropy update, in their layout."""
    rows = host_rows.teacher_rows(programs.method, full_batch(blueprint), row_shape(blueprint, "generator"))
    return _abstract_rows(blueprint, rows)


def policy_rows(blueprint: Blueprint, programs: Programs) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a policy update and the sampler's log-probs."""
    batch, samples = full_batch(blueprint), full_samples(blueprint)
    rows, sampled = host_rows.policy_rows(programs.method, batch, samples, row_shape(blueprint, "generator"))
    return _abstract_rows(blueprint, rows, leading=2), _whole(blueprint, sampled.shape, sampled.dtype)


def group_rows(blueprint: Blueprint, programs: Programs) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a discriminator update with a full replay, and the groups' weights."""
    samples = full_samples(blueprint)
    fresh = {name: value for name, value in full_batch(blueprint).items() if name != "row"}
    fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
    share = blueprint.config.discriminator.replay_share
    replayed = None
    if blueprint.config.discriminator.replay_size:
        past = past_groups(share, blueprint.config.batch_size, programs.method.discriminator_micro_batches)
        replayed = {name: np.resize(value, (past, *value.shape[1:])) for name, value in fresh.items()}
    rows, weight = host_rows.group_rows(programs.method, fresh, replayed, share, row_shape(blueprint, "discriminator"))
    return _abstract_rows(blueprint, rows), _whole(blueprint, weight.shape, weight.dtype)


def _abstract_rows(blueprint: Blueprint, rows: Packed, leading: int = 1) -> Packed:
    split = layout.rows(blueprint.mesh, leading=leading)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), rows)
    return abstract.replace(last=_whole(blueprint, rows.last.shape, rows.last.dtype))


def _whole(blueprint: Blueprint, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated(blueprint.mesh))
