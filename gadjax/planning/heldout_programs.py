"""The programs that measure a run on held-out prompts, and those of the two-sample test, as shapes alone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.data.packing import Packed, one_per_row
from gadjax.distill.state import GadState, create
from gadjax.evaluation.two_sample import BATCH, widths
from gadjax.models import layouts
from gadjax.models.lora import join, trained
from gadjax.models.model import Params
from gadjax.parallel import mesh as meshes
from gadjax.planning.program import RunProgram, make_program, rollout_trips
from gadjax.rollout.engine import queue_width
from gadjax.setup.blueprint import Blueprint, abstract_state, decoding_weights, state_shardings
from gadjax.trainer.heldout import rows_of_each
from gadjax.trainer.programs import HeldOutPrograms, abstract_rows


def heldout_programs(blueprint: Blueprint) -> Iterator[RunProgram]:
    """The programs of a run that has held-out prompts, beside the state of its last stage, which is the largest."""
    if blueprint.heldout_prompts:
        yield from _figures(blueprint)
        if blueprint.config.evaluation.two_sample_folds:
            yield from _two_sample(blueprint)


def _figures(blueprint: Blueprint) -> Iterator[RunProgram]:
    """Programs of the held-out figures. Their parameters are whole trees: adapters are joined with their base."""
    state, programs = _measured_state(blueprint), HeldOutPrograms(blueprint)
    make = functools.partial(make_program, blueprint, state, phase="measure")
    generator = join(state.base, state.generator.params)
    prompts, answers = _full_prompts(blueprint)

    def rows(of_each, network):
        packed = rows_of_each(blueprint, prompts, [answers[:1] * of_each] * len(prompts), programs.parts[network])
        return abstract_rows(blueprint.mesh, packed)

    given = lambda: (generator, rows(1, "generator"))  # noqa: E731
    yield make("held-out likelihoods", _measuring("likelihoods"), given, model=blueprint.generator)
    if blueprint.mesh.size > 1:
        given = lambda: (generator,)  # noqa: E731
        weights = "held-out weights for sampling", _measuring("decoding_params"), given
        # The two-sample test runs the same program, with more beside it.
        yield make(*weights, model=blueprint.sampler, beside=_two_sample_base(blueprint))
    # At the temperature of the two-sample test this is the program of that test.
    if blueprint.config.evaluation.temperature not in _two_sample_temperatures(blueprint):
        yield _answering(blueprint, "held-out answers", blueprint.config.evaluation.temperature)
    if state.discriminator is not None:
        discriminator = join(state.base, state.discriminator.params)
        given = lambda: (discriminator, rows(2, "discriminator"))  # noqa: E731
        yield make("held-out scores", _measuring("scores"), given, model=blueprint.discriminator)


def _two_sample(blueprint: Blueprint) -> Iterator[RunProgram]:
    """Programs of the two-sample test, beside the base that its classifiers start from."""
    state, beside = _measured_state(blueprint), _two_sample_base(blueprint)
    for temperature in _two_sample_temperatures(blueprint):
        yield _answering(blueprint, "two-sample answers", temperature, beside)
    classifier = HeldOutPrograms(blueprint).classifier
    model = classifier.model
    make = functools.partial(make_program, blueprint, state, model=model, phase="measure", beside=beside)
    fresh = jax.eval_shape(functools.partial(create, optimizer=classifier.optimizer), trained(model.abstract_params()))
    fresh = meshes.with_shardings(fresh, state_shardings(model, classifier.optimizer, blueprint.mesh))
    frozen = classifier.frozen(state.base)
    count, folds = blueprint.heldout_prompts, blueprint.config.evaluation.two_sample_folds
    update = min(BATCH, count - count // folds)  # a batch, or all prompts that the smallest fold leaves for training
    given = lambda: (fresh, frozen, _two_sample_rows(blueprint, update))  # noqa: E731
    yield make("two-sample update", _measuring("classifier.update"), given)
    given = lambda: (fresh.params, frozen, _two_sample_rows(blueprint, BATCH))  # noqa: E731
    yield make("two-sample scores", _measuring("classifier.score"), given)


def _answering(blueprint: Blueprint, name: str, temperature: float, beside: Any = None) -> RunProgram:
    """Sampling answers to held-out prompts, in queues as wide as their longest prompt."""
    state, engine = _measured_state(blueprint), HeldOutPrograms(blueprint).engine
    (count, slots), width = engine.queue_size(blueprint.heldout_prompts), queue_width(blueprint.prompt_width)
    weights = decoding_weights(blueprint, state)
    return make_program(
        blueprint,
        state,
        name,
        _measuring("engine.sample"),
        lambda: (weights, *engine.abstract_queue(count, width)),
        model=blueprint.sampler,
        phase="measure",
        static={"sampling": blueprint.sampling(temperature), "slots": slots},
        loop_trips=rollout_trips(blueprint, count, width, 1, slots),
        beside=beside,
    )


def _two_sample_temperatures(blueprint: Blueprint) -> tuple[float, ...]:
    """The temperatures at which the two-sample test samples: one, or none."""
    return (blueprint.config.rollout.temperature,) if blueprint.config.evaluation.two_sample_folds else ()


def _two_sample_base(blueprint: Blueprint) -> Params | None:
    """The student's first weights, which the two-sample test reads anew. A run of adapters has them already."""
    if blueprint.generator.config.lora or not blueprint.config.evaluation.two_sample_folds:
        return None
    return layouts.abstract_params(blueprint.generator, blueprint.mesh)


def _two_sample_rows(blueprint: Blueprint, prompts: int) -> Packed:
    """Rows of two answers to each prompt, without layouts: the compiler chooses them."""
    width, limit = widths(blueprint.prompt_width, blueprint.config.data.max_response_length)
    shape = lambda *sizes: jax.ShapeDtypeStruct((2 * prompts, *sizes), np.int32)  # noqa: E731
    return jax.eval_shape(one_per_row, shape(width), shape(), shape(limit), shape())


def _measured_state(blueprint: Blueprint) -> GadState:
    """The state of the last stage, which has the most parts."""
    return abstract_state(blueprint, blueprint.config.stages[-1])


def _full_prompts(blueprint: Blueprint) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Held-out prompts and answers of the largest lengths."""
    sizes = blueprint.prompt_width, blueprint.config.data.max_response_length
    return tuple([np.zeros(size, np.int32)] * blueprint.heldout_prompts for size in sizes)


def _measuring(name: str) -> Callable[[Blueprint], Any]:
    """Makes one of `HeldOutPrograms`' jitted functions from a blueprint."""
    return lambda blueprint: operator.attrgetter(name)(HeldOutPrograms(blueprint))
