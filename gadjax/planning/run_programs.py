"""Every program of a run with the arguments that the trainer would give it at full length, as shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed
from gadjax.distill import rows as sequences
from gadjax.distill.rows import PackedByHost
from gadjax.distill.state import GadState
from gadjax.parallel import mesh as meshes
from gadjax.planning.heldout_programs import heldout_programs
from gadjax.planning.program import RunProgram, make_program, rollout_trips
from gadjax.rollout.sampler import Samples
from gadjax.setup.blueprint import Blueprint, abstract_state, decoding_weights, make_method
from gadjax.trainer.programs import Programs, abstract_rows
from gadjax.trainer.replay import pack_groups, past_groups
from gadjax.trainer.stage_steps import row_shape


def run_programs(blueprint: Blueprint) -> Iterator[RunProgram]:
    """The programs of a run, heaviest stage's state around them; each once, whatever stages share it.

    Those of its steps come first, and those of its held-out figures last.
    """
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
    yield from heldout_programs(blueprint)


def _sampling(blueprint: Blueprint, stages: tuple[str, ...]) -> Iterator[RunProgram]:
    programs, state = _of_stage(blueprint, stages[-1])
    make = functools.partial(make_program, blueprint, state, model=blueprint.sampler, stages=stages, phase="rollout")
    if blueprint.mesh.size > 1:  # else they are cast one by one
        given = lambda: (state.generator.params,)  # noqa: E731
        yield make("weights for sampling", _step(stages[-1], "decoding_params"), given, base=state.base)
    weights = decoding_weights(blueprint, state)
    given = lambda: (weights, *programs.abstract_batch(*shape[:2]))  # noqa: E731
    again = blueprint.mesh.size > 1  # the weights for it came before
    sample = _step(stages[-1], "sample_batch")
    config = blueprint.config
    shape = config.batch_size, blueprint.prompt_width, config.rollout.num_samples, config.rollout.slots
    yield make("rollout", sample, given, loop_trips=rollout_trips(blueprint, *shape), again=again)


def _discriminating(blueprint: Blueprint, stages: tuple[str, ...], train: bool) -> RunProgram:
    programs, state = _of_stage(blueprint, stages[-1])
    name, function = ("discriminator update", "update_discriminator") if train else ("rewards", "score")
    return make_program(
        blueprint,
        state,
        name,
        _step(stages[-1], function),
        lambda: (state.discriminator, *group_rows(blueprint, programs)),
        model=blueprint.discriminator,
        stages=stages,
        phase="discriminator",
        base=state.base,
        static={"fresh": blueprint.config.batch_size} if train else {},
    )


def _supervised(blueprint: Blueprint, stages: tuple[str, ...]) -> RunProgram:
    programs, state = _of_stage(blueprint, stages[-1])
    return make_program(
        blueprint,
        state,
        "cross-entropy update",
        _step(stages[-1], "update_supervised"),
        lambda: (state.generator, teacher_rows(blueprint, programs)),
        model=blueprint.generator,
        stages=stages,
        phase="generator",
        base=state.base,
    )


def _policy(blueprint: Blueprint) -> Iterator[RunProgram]:
    programs, state = _of_stage(blueprint, "gad")
    make = functools.partial(
        make_program, blueprint, state, model=blueprint.generator, stages=("gad",), base=state.base
    )
    packed = functools.cache(lambda: policy_rows(blueprint, programs))
    given = lambda: (state.reference, packed()[0])  # noqa: E731
    yield make("reference", _step("gad", "reference_logprobs"), given, phase="reference")

    def given():
        rows, sampled = packed()
        teacher = teacher_rows(blueprint, programs) if programs.method.sft_coefficient else None
        rewards = _whole(blueprint, (blueprint.config.batch_size, programs.method.num_samples), np.float32)
        before = jax.ShapeDtypeStruct(rows.owner.shape, np.float32, sharding=rows.owner.sharding)
        return state.generator, before, rows, sampled, rewards, teacher

    yield make("policy update", _step("gad", "update_policy"), given, phase="generator")


def _of_stage(blueprint: Blueprint, stage: str) -> tuple[Programs, GadState]:
    return Programs(make_method(blueprint, stage), blueprint.mesh), abstract_state(blueprint, stage)


def _step(stage: str, name: str) -> Callable[[Blueprint], Any]:
    return lambda blueprint: getattr(_of_stage(blueprint, stage)[0], name)


def _trains(blueprint: Blueprint, stage: str, network: str) -> bool:
    section = blueprint.config[stage]
    return stage == "seqkd" if "train_generator" not in section else section[f"train_{network}"]


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
    lay_out = PackedByHost(row_shape(blueprint, "generator", 1))
    rows = sequences.teacher_rows(programs.method, full_batch(blueprint), lay_out)
    return abstract_rows(blueprint.mesh, rows)


def policy_rows(blueprint: Blueprint, programs: Programs) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a policy update and the sampler's log-probs."""
    batch, samples = full_batch(blueprint), full_samples(blueprint)
    lay_out = PackedByHost(row_shape(blueprint, "generator", programs.method.num_samples))
    rows, sampled = sequences.policy_rows(programs.method, batch, samples, lay_out)
    return abstract_rows(blueprint.mesh, rows, leading=2), _whole(blueprint, sampled.shape, sampled.dtype)


def group_rows(blueprint: Blueprint, programs: Programs) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a discriminator update with a full replay, and the groups' weights."""
    samples = full_samples(blueprint)
    fresh = {name: value for name, value in full_batch(blueprint).items() if name != "row"}
    fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
    share = blueprint.config.discriminator.replay_share
    replayed = None
    if blueprint.config.discriminator.replay_size:
        past = past_groups(share, blueprint.config.batch_size)
        replayed = {name: np.resize(value, (past, *value.shape[1:])) for name, value in fresh.items()}
    lay_out = PackedByHost(row_shape(blueprint, "discriminator", 1 + programs.method.num_samples))
    rows, weight = pack_groups(programs.method, fresh, replayed, share, lay_out)
    return abstract_rows(blueprint.mesh, rows), _whole(blueprint, weight.shape, weight.dtype)


def _whole(blueprint: Blueprint, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.replicated(blueprint.mesh))
