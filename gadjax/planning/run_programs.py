"""Every program of a run's steps, with the arguments that the trainer gives it at full length, as shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed
from gadjax.distill import rows as sequences
from gadjax.distill.method import Method
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
    """The programs of a run: first those of its steps, then those of its held-out figures.

    A program that several stages share comes once, beside the state of the last of them, which is the largest.
    """
    config, stages = blueprint.config, blueprint.config.stages
    adversarial = tuple(stage for stage in stages if stage != "seqkd")
    if adversarial:
        yield from _sampling(blueprint, adversarial)
        make = functools.partial(_of_step, blueprint, model=blueprint.discriminator, phase="discriminator")
        given: Any = lambda programs, state: (state.discriminator, *group_rows(blueprint, programs.method))  # noqa: E731
        training = tuple(stage for stage in adversarial if _trains(blueprint, stage, "discriminator"))
        if training:
            fresh = {"fresh": config.batch_size}
            yield make(training, "discriminator update", "update_discriminator", given, static=fresh)
        if scoring := tuple(stage for stage in adversarial if stage not in training):
            yield make(scoring, "rewards", "score", given)
    make = functools.partial(_of_step, blueprint, model=blueprint.generator)
    if supervised := tuple(stage for stage in stages if stage != "gad" and _trains(blueprint, stage, "generator")):
        given = lambda programs, state: (state.generator, teacher_rows(blueprint, programs.method))  # noqa: E731
        yield make(supervised, "cross-entropy update", "update_supervised", given, phase="generator")
    if "gad" in stages and _trains(blueprint, "gad", "generator"):
        packed = functools.cache(lambda: policy_rows(blueprint, make_method(blueprint, "gad")))  # for both programs
        given = lambda programs, state: (state.reference, packed()[0])  # noqa: E731
        yield make(("gad",), "reference", "reference_logprobs", given, phase="reference")
        given = lambda programs, state: _policy_arguments(blueprint, programs.method, state, *packed())  # noqa: E731
        yield make(("gad",), "policy update", "learn_from_rewards", given, phase="generator")
    yield from heldout_programs(blueprint)


def _sampling(blueprint: Blueprint, stages: tuple[str, ...]) -> Iterator[RunProgram]:
    """Laying out the weights, and the rollout."""
    config, moves = blueprint.config, blueprint.mesh.size > 1
    make = functools.partial(_of_step, blueprint, stages, model=blueprint.sampler, phase="rollout")
    if moves:  # one device casts weights outside of a program
        yield make("weights for sampling", "decoding_params", lambda programs, state: (state.generator.params,))
    shape = config.batch_size, blueprint.prompt_width, config.rollout.num_samples, config.rollout.slots
    given = lambda programs, state: (decoding_weights(blueprint, state), *programs.abstract_batch(*shape[:2]))  # noqa: E731
    trips = rollout_trips(blueprint, *shape)
    yield make("rollout", "sample_batch", given, base=None, loop_trips=trips, again=moves)


def _policy_arguments(blueprint: Blueprint, method: Method, state: GadState, rows: Packed, sampled: Any) -> tuple:
    teacher = teacher_rows(blueprint, method) if method.sft_coefficient else None
    rewards = _whole(blueprint, (blueprint.config.batch_size, method.num_samples), np.float32)
    before = jax.ShapeDtypeStruct(rows.owner.shape, np.float32, sharding=rows.owner.sharding)
    return state.generator, before, rows, sampled, rewards, teacher


def _of_step(
    blueprint: Blueprint,
    stages: tuple[str, ...],
    name: str,
    function: str,
    given: Callable[[Programs, GadState], tuple],
    **fields: Any,
) -> RunProgram:
    """A program of the steps of some stages, beside the state of the last one.

    Args:
      function: its attribute of `Programs`.
      given: makes the positional arguments.
      fields: as for `make_program`.
    """
    method, state = functools.partial(make_method, stage=stages[-1]), abstract_state(blueprint, stages[-1])
    programs = Programs(method(blueprint), blueprint.mesh)
    jitted = lambda blueprint: getattr(Programs(method(blueprint), blueprint.mesh), function)  # noqa: E731
    arguments = lambda: given(programs, state)  # noqa: E731
    return make_program(blueprint, state, name, jitted, arguments, stages=stages, **({"base": state.base} | fields))


def _trains(blueprint: Blueprint, stage: str, network: str) -> bool:
    """Whether a stage trains a network, as the config says."""
    section = blueprint.config[stage]
    return stage == "seqkd" if "train_generator" not in section else section[f"train_{network}"]


def full_batch(blueprint: Blueprint) -> dict[str, np.ndarray]:
    """A host batch in which all prompts and answers have their largest length."""
    count, width, limit = blueprint.config.batch_size, blueprint.prompt_width, blueprint.config.data.max_response_length
    return {
        "prompt": np.zeros((count, width), np.int32),
        "prompt_length": np.full(count, width, np.int32),
        "teacher": np.zeros((count, limit), np.int32),
        "teacher_length": np.full(count, limit, np.int32),
        "row": np.zeros(count, np.int32),
    }


def full_samples(blueprint: Blueprint) -> Samples:
    """Samples that are all cut at the limit, as the rollout returns them."""
    shape = blueprint.config.batch_size, blueprint.config.rollout.num_samples
    limit = blueprint.config.data.max_response_length
    return Samples(
        tokens=np.zeros((*shape, limit), np.int32),
        lengths=np.full(shape, limit, np.int32),
        logprobs=np.zeros((*shape, limit), np.float32),
        ended=np.zeros(shape, bool),
    )


def teacher_rows(blueprint: Blueprint, method: Method) -> Packed:
    """The rows of a cross-entropy update, with their layout."""
    lay_out = PackedByHost(row_shape(blueprint, "generator", 1))
    rows = sequences.teacher_rows(method, full_batch(blueprint), lay_out)
    return abstract_rows(blueprint.mesh, rows)


def policy_rows(blueprint: Blueprint, method: Method) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a policy update, and the log-probs that the sampler recorded."""
    batch, samples = full_batch(blueprint), full_samples(blueprint)
    lay_out = PackedByHost(row_shape(blueprint, "generator", method.num_samples))
    rows, sampled = sequences.policy_rows(method, batch, samples, lay_out)
    return abstract_rows(blueprint.mesh, rows, leading=2), _whole(blueprint, sampled.shape, sampled.dtype)


def group_rows(blueprint: Blueprint, method: Method) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a discriminator update with a full replay buffer, and the weights of its groups."""
    samples = full_samples(blueprint)
    fresh = {name: value for name, value in full_batch(blueprint).items() if name != "row"}
    fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
    share = blueprint.config.discriminator.replay_share
    replayed = None
    if blueprint.config.discriminator.replay_size:
        past = past_groups(share, blueprint.config.batch_size)
        replayed = {name: np.resize(value, (past, *value.shape[1:])) for name, value in fresh.items()}
    lay_out = PackedByHost(row_shape(blueprint, "discriminator", 1 + method.num_samples))
    rows, weight = pack_groups(method, fresh, replayed, share, lay_out)
    return abstract_rows(blueprint.mesh, rows), _whole(blueprint, weight.shape, weight.dtype)


def _whole(blueprint: Blueprint, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.replicated(blueprint.mesh))
