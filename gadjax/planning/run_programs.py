"""Every program of a run's steps, with the arguments that the trainer gives it at full length, as shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed
from gadjax.distill import rows as sequences
from gadjax.distill.method import Baseline, Method
from gadjax.distill.rows import PackedByHost
from gadjax.distill.state import GadState
from gadjax.distill.steps import Phase
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
    if "soda" in stages:
        yield from _preferring(blueprint)
    adversarial = tuple(stage for stage in stages if stage in ("warmup", "gad"))
    if adversarial:
        yield from _sampling(blueprint, adversarial)
        if config.discriminator.kind == "likelihood":
            yield _baseline(blueprint, adversarial, config.discriminator.baseline)
        make = functools.partial(_of_step, blueprint, model=blueprint.discriminator, phase="discriminator")
        given: Any = lambda programs, state: (state.discriminator, *_judged(blueprint, programs.method))  # noqa: E731
        fresh = {"fresh": config.batch_size}
        training = tuple(stage for stage in adversarial if _trains(blueprint, stage, "discriminator"))
        if training:
            yield make(training, "discriminator update", "update_discriminator", given, static=fresh)
        if scoring := tuple(stage for stage in adversarial if stage not in training):
            yield make(scoring, "rewards", "score", given, static=fresh)
    make = functools.partial(_of_step, blueprint, model=blueprint.generator)
    cross_entropy = (stage for stage in stages if stage in ("seqkd", "warmup"))
    if supervised := tuple(stage for stage in cross_entropy if _trains(blueprint, stage, "generator")):
        given = lambda programs, state: (state.generator, teacher_rows(blueprint, programs.method))  # noqa: E731
        yield make(supervised, "cross-entropy update", "update_supervised", given, phase="generator")
    if "seqkd" in stages and config.seqkd.train_discriminator:
        given = lambda programs, state: (state.discriminator, teacher_rows(blueprint, programs.method))  # noqa: E731
        taught: Any = {"model": blueprint.discriminator, "phase": "discriminator"}
        yield make(("seqkd",), "discriminator's cross-entropy update", "teach_discriminator", given, **taught)
    if "gad" in stages and _trains(blueprint, "gad", "generator"):
        packed = functools.cache(lambda: policy_rows(blueprint, make_method(blueprint, "gad")))  # for both programs
        given = lambda programs, state: (state.reference, packed()[0])  # noqa: E731
        yield make(("gad",), "reference", "reference_logprobs", given, phase="reference")
        given = lambda programs, state: _policy_arguments(blueprint, programs.method, state, *packed())  # noqa: E731
        yield make(("gad",), "policy update", "update_policy", given, phase="generator")
    yield from heldout_programs(blueprint)


def _preferring(blueprint: Blueprint) -> Iterator[RunProgram]:
    """The programs of stage soda: one sample of the reference, its log-probs, and the update of DPO."""
    yield from _sampling(blueprint, ("soda",), frozen=True)
    yield _baseline(blueprint, ("soda",), "reference")
    given: Any = lambda programs, state: (state.generator, *_judged(blueprint, programs.method))  # noqa: E731
    fresh = {"fresh": blueprint.config.batch_size}
    update: Any = {"model": blueprint.generator, "phase": "generator", "static": fresh}
    yield _of_step(blueprint, ("soda",), "preference update", "update_discriminator", given, **update)


def _baseline(blueprint: Blueprint, stages: tuple[str, ...], policy: Baseline) -> RunProgram:
    """The log-probs that a likelihood discriminator is measured against."""
    params: Any = lambda state: state.reference if policy == "reference" else state.generator.params  # noqa: E731
    given: Any = lambda programs, state: (params(state), group_rows(blueprint, programs.method)[0])  # noqa: E731
    phase = "reference" if policy == "reference" else "generator"
    name = "baseline of the discriminator" if stages != ("soda",) else "baseline of the preferences"
    return _of_step(blueprint, stages, name, "baseline_logprobs", given, model=blueprint.generator, phase=phase)


def _judged(blueprint: Blueprint, method: Method) -> tuple:
    """The groups of a discriminator update, their weights, and the baseline of a likelihood discriminator."""
    rows, weight = group_rows(blueprint, method)
    if not method.measures_likelihood:
        return rows, weight
    shape = weight.shape[0], 1 + method.num_samples, method.sampling.max_response_length
    return rows, weight, _whole(blueprint, shape, np.float32)


def _sampling(blueprint: Blueprint, stages: tuple[str, ...], *, frozen: bool = False) -> Iterator[RunProgram]:
    """Laying out the weights, and the rollout. `frozen`: of the reference, which draws one sample a prompt."""
    config, moves = blueprint.config, blueprint.mesh.size > 1
    phase: Phase = "frozen rollout" if frozen else "rollout"
    make = functools.partial(_of_step, blueprint, stages, model=blueprint.sampler, phase=phase)
    if moves:  # one device casts weights outside of a program
        params: Any = lambda state: state.reference if frozen else state.generator.params  # noqa: E731
        yield make("weights for sampling", "decoding_params", lambda programs, state: (params(state),))
    samples = 1 if frozen else config.rollout.num_samples
    shape = config.batch_size, blueprint.prompt_width, samples, config.rollout.slots
    given = lambda programs, state: (decoding_weights(blueprint, state), *programs.abstract_batch(*shape[:2]))  # noqa: E731
    trips = rollout_trips(blueprint, *shape)
    yield make("rollout", "sample_batch", given, base=None, loop_trips=trips, again=moves)


def _policy_arguments(blueprint: Blueprint, method: Method, state: GadState, rows: Packed, sampled: Any) -> tuple:
    size = blueprint.config.batch_size
    teacher = teacher_rows(blueprint, method) if method.sft_coefficient or method.demonstrations else None
    tokens = (method.sampling.max_response_length,) if method.credit == "token" else ()
    given = _whole(blueprint, (size, method.num_samples, *tokens), np.float32)
    demonstrations = _whole(blueprint, (size,), np.float32) if method.demonstrations else None
    before = jax.ShapeDtypeStruct(rows.owner.shape, np.float32, sharding=rows.owner.sharding)
    return state.generator, before, rows, sampled, given, teacher, demonstrations


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
    return bool(section.get(f"train_{network}", network == "generator"))


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


def full_samples(blueprint: Blueprint, method: Method) -> Samples:
    """Samples that are all cut at the limit, as the rollout returns them."""
    shape = blueprint.config.batch_size, method.num_samples
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
    batch, samples = full_batch(blueprint), full_samples(blueprint, method)
    lay_out = PackedByHost(row_shape(blueprint, "generator", method.num_samples))
    rows, sampled = sequences.policy_rows(method, batch, samples, lay_out)
    return abstract_rows(blueprint.mesh, rows, leading=2), _whole(blueprint, sampled.shape, sampled.dtype)


def group_rows(blueprint: Blueprint, method: Method) -> tuple[Packed, jax.ShapeDtypeStruct]:
    """The rows of a discriminator update with a full replay buffer, and the weights of its groups."""
    samples = full_samples(blueprint, method)
    fresh = {name: value for name, value in full_batch(blueprint).items() if name != "row"}
    fresh |= {"tokens": samples.tokens, "lengths": samples.lengths}
    share = blueprint.config.discriminator.replay_share
    replayed = None
    if blueprint.config.discriminator.replay_size and method.num_samples > 1:
        past = past_groups(share, blueprint.config.batch_size)
        replayed = {name: np.resize(value, (past, *value.shape[1:])) for name, value in fresh.items()}
    network = "discriminator" if method.num_samples > 1 else "generator"  # stage soda draws one
    lay_out = PackedByHost(row_shape(blueprint, network, 1 + method.num_samples))
    rows, weight = pack_groups(method, fresh, replayed, share, lay_out)
    return abstract_rows(blueprint.mesh, rows), _whole(blueprint, weight.shape, weight.dtype)


def _whole(blueprint: Blueprint, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.replicated(blueprint.mesh))
