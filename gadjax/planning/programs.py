"""Every program of a run with the arguments that the trainer would give it at full length, as shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed
from gadjax.parallel import mesh as layout
from gadjax.rollout.sampler import Samples
from gadjax.trainer import host_rows
from gadjax.trainer.blueprint import Blueprint, abstract_state, make_method
from gadjax.trainer.offload import Offload, Phase, read_part
from gadjax.trainer.programs import Programs


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """One program.

    Attributes:
      name: for people.
      stages: of the config, that run it.
      phase: of a step, which says what else is on the devices (`gadjax.trainer.offload`).
      trace: its jitted function, traced.
      arguments: what it is given, with layouts.
      resident: the state that is on the devices while it runs, its own arguments included.
      fetched: of that, what waits in host memory at other times.
    """

    name: str
    stages: tuple[str, ...]
    phase: Phase
    trace: Callable[[], jax.stages.Traced]
    arguments: Any
    resident: Any
    fetched: Any


def run_programs(blueprint: Blueprint) -> Iterator[RunProgram]:
    """The programs of the steps of a run, heaviest stage's state around them; each once, whatever stages share it."""
    stages = blueprint.config.stages
    adversarial = tuple(stage for stage in stages if stage != "seqkd")
    supervised = tuple(stage for stage in stages if stage != "gad" and _trains(blueprint, stage, "generator"))
    if adversarial:
        yield from _adversarial(
            blueprint, adversarial, Programs(make_method(blueprint, adversarial[-1]), blueprint.mesh)
        )
    if supervised:
        programs = Programs(make_method(blueprint, supervised[-1]), blueprint.mesh)
        state = abstract_state(blueprint, supervised[-1])
        arguments = (state.generator, teacher_rows(blueprint, programs))
        yield _program(
            "cross-entropy update", supervised, "generator", programs.update_supervised, arguments, state, blueprint
        )
    if "gad" in stages and _trains(blueprint, "gad", "generator"):
        programs = Programs(make_method(blueprint, "gad"), blueprint.mesh)
        state = abstract_state(blueprint, "gad")
        rows, sampled = policy_rows(blueprint, programs)
        teacher = teacher_rows(blueprint, programs) if programs.method.sft_coefficient else None
        rewards = _whole(blueprint, (blueprint.config.batch_size, programs.method.num_samples), np.float32)
        arguments = (state.generator, state.reference, rows, sampled, rewards, teacher)
        yield _program("policy update", ("gad",), "generator", programs.update_policy, arguments, state, blueprint)


def _adversarial(blueprint: Blueprint, stages: tuple[str, ...], programs: Programs) -> Iterator[RunProgram]:
    state = abstract_state(blueprint, stages[-1])
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (state.generator.params, abstract_batch(blueprint), key)
    yield _program("rollout", stages, "rollout", programs.sample, arguments, state, blueprint)
    rows, weight = group_rows(blueprint, programs)
    arguments = (state.discriminator, rows, weight)
    train = _trains(blueprint, stages[-1], "discriminator")
    name, jitted = ("discriminator update", programs.update_discriminator) if train else ("rewards", programs.score)
    static = {"fresh": blueprint.config.batch_size} if train else {}
    yield _program(name, stages, "discriminator", jitted, arguments, state, blueprint, **static)


def _program(name, stages, phase, jitted, arguments, state, blueprint, **static) -> RunProgram:
    offload = Offload.of(blueprint.config)
    resident = [*(read_part(state, part) for part in offload.on_device(phase)), state.base]
    fetched = [read_part(state, part) for part in offload.fetched(phase)]
    trace = lambda: jitted.trace(*arguments, base=state.base, **static)  # noqa: E731
    return RunProgram(name, stages, phase, trace, (*arguments, state.base), resident, fetched)


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


def abstract_batch(blueprint: Blueprint) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as `Programs.place_batch` lays it out."""
    rows = layout.rows(blueprint.mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in full_batch(blueprint).items()}


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
    rows = host_rows.teacher_rows(programs.method, full_batch(blueprint), **_row_shape(blueprint))
    return _abstract_rows(blueprint, rows)


def policy_rows(blueprint: Blueprint, programs: Programs) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a policy update and the sampler's log-probs."""
    batch, samples = full_batch(blueprint), full_samples(blueprint)
    rows, sampled = host_rows.policy_rows(programs.method, batch, samples, **_row_shape(blueprint))
    return _abstract_rows(blueprint, rows, leading=2), _whole(blueprint, sampled.shape, sampled.dtype)


def group_rows(blueprint: Blueprint, programs: Programs) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a discriminator update with a full replay, and the groups' weights."""
    samples = full_samples(blueprint)
    fresh = {name: value for name, value in full_batch(blueprint).items() if name != "row"}
    fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
    share = blueprint.config.discriminator.replay_share
    replayed = None
    if blueprint.config.discriminator.replay_size:
        count, parts = blueprint.config.batch_size, programs.method.discriminator_micro_batches
        past = max(parts, round(count * share / (1 - share)) // parts * parts)
        replayed = {name: np.resize(value, (past, *value.shape[1:])) for name, value in fresh.items()}
    rows, weight = host_rows.group_rows(programs.method, fresh, replayed, share, **_row_shape(blueprint))
    return _abstract_rows(blueprint, rows), _whole(blueprint, weight.shape, weight.dtype)


def _row_shape(blueprint: Blueprint) -> dict[str, int]:
    return {"row_length": blueprint.row_length, "row_multiple": blueprint.row_multiple}


def _abstract_rows(blueprint: Blueprint, rows: Packed, leading: int = 1) -> Packed:
    split = layout.rows(blueprint.mesh, leading=leading)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), rows)
    return abstract.replace(last=_whole(blueprint, rows.last.shape, rows.last.dtype))


def _whole(blueprint: Blueprint, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated(blueprint.mesh))
