"""The programs that measure a run on held-out prompts, and those of the two-sample test, as shapes alone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gadjax.config.check import samples_heldout
from gadjax.data.packing import Packed, one_per_row
from gadjax.distill.state import GadState, create, state_shardings
from gadjax.evaluation.two_sample import BATCH, Classifier, widths
from gadjax.models import layouts
from gadjax.models.lora import join, trained
from gadjax.models.model import Params
from gadjax.parallel import mesh as meshes
from gadjax.planning.program import RunProgram, make_program, rollout_trips
from gadjax.rollout.engine import queue_width
from gadjax.setup.blueprint import Blueprint, abstract_state, decoding_weights
from gadjax.trainer.heldout import rows_of_each
from gadjax.trainer.programs import HeldOutPrograms, abstract_rows


def heldout_programs(blueprint: Blueprint) -> Iterator[RunProgram]:
    """The programs of a run that has held-out prompts, beside the state of its last stage, which is the largest."""
    if not blueprint.heldout_prompts:
        return
    config = blueprint.config
    state, programs = abstract_state(blueprint, config.stages[-1]), HeldOutPrograms(blueprint)
    make = functools.partial(_measuring, blueprint, state)
    # Parameters are whole trees: adapters are joined with their base.
    generator = join(state.base, state.generator.params)
    prompt, answer = (np.zeros(size, np.int32) for size in (blueprint.prompt_width, config.data.max_response_length))

    def rows(of_each: int, network: str) -> Packed:
        """Rows of held-out prompts with this many answers each, all of the largest length."""
        prompts = [prompt] * blueprint.heldout_prompts
        packed = rows_of_each(blueprint, prompts, [[answer] * of_each] * len(prompts), programs.parts[network])
        return abstract_rows(blueprint.mesh, packed)

    likelihoods = lambda: (generator, rows(1, "generator"))  # noqa: E731
    yield make("held-out likelihoods", "likelihoods", likelihoods, model=blueprint.generator)
    # The two-sample test runs the programs of these weights and answers too, with its classifiers' base beside them.
    beside = _two_sample_base(blueprint)
    if blueprint.mesh.size > 1:
        weights = "held-out weights for sampling", "decoding_params", lambda: (generator,)
        yield make(*weights, model=blueprint.sampler, beside=beside)
    tested = (config.rollout.temperature,) if samples_heldout(config) else ()
    if config.evaluation.temperature not in tested:
        yield _answering(blueprint, state, "held-out answers", config.evaluation.temperature)
    if state.discriminator is not None:
        judges = programs.judges(join(state.base, state.discriminator.params), generator)
        scores = lambda: (judges, rows(2, "discriminator"))  # noqa: E731
        yield make("held-out scores", "scores", scores, model=blueprint.discriminator)
    for temperature in tested:
        yield _answering(blueprint, state, "two-sample answers", temperature, beside)
        if config.evaluation.two_sample_folds:
            yield from _classifying(blueprint, state, programs.classifier, beside)


def _classifying(blueprint: Blueprint, state: GadState, classifier: Classifier, beside: Any) -> Iterator[RunProgram]:
    """The update and the scores of the two-sample test's classifiers."""
    model = classifier.model
    make = functools.partial(_measuring, blueprint, state, model=model, beside=beside)
    fresh = jax.eval_shape(functools.partial(create, optimizer=classifier.optimizer), trained(model.abstract_params()))
    fresh = meshes.with_shardings(fresh, state_shardings(model, classifier.optimizer, blueprint.mesh))
    frozen = classifier.frozen(state.base)
    width, limit = widths(blueprint.prompt_width, blueprint.config.data.max_response_length)

    def rows(prompts: int) -> Packed:
        """Rows of two answers to each prompt, without layouts: the compiler chooses them."""
        shape = lambda *sizes: jax.ShapeDtypeStruct((2 * prompts, *sizes), np.int32)  # noqa: E731
        return jax.eval_shape(one_per_row, shape(width), shape(), shape(limit), shape())

    count, folds = blueprint.heldout_prompts, blueprint.config.evaluation.two_sample_folds
    update = min(BATCH, count - count // folds)  # a batch, or all prompts that the smallest fold leaves for training
    yield make("two-sample update", "classifier.update", lambda: (fresh, frozen, rows(update)))
    yield make("two-sample scores", "classifier.score", lambda: (fresh.params, frozen, rows(BATCH)))


def _answering(blueprint: Blueprint, state: GadState, name: str, temperature: float, beside: Any = None) -> RunProgram:
    """Sampling answers to held-out prompts, in queues as wide as their longest prompt."""
    engine = HeldOutPrograms(blueprint).engine
    (count, slots), width = engine.queue_size(blueprint.heldout_prompts), queue_width(blueprint.prompt_width)
    weights = decoding_weights(blueprint, state)
    return _measuring(
        blueprint,
        state,
        name,
        "engine.sample",
        lambda: (weights, *engine.abstract_queue(count, width)),
        model=blueprint.sampler,
        static={"sampling": blueprint.sampling(temperature), "slots": slots},
        loop_trips=rollout_trips(blueprint, count, width, 1, slots),
        beside=beside,
    )


def _measuring(
    blueprint: Blueprint, state: GadState, name: str, function: str, given: Callable[[], tuple], **fields: Any
) -> RunProgram:
    """A program of `HeldOutPrograms`; `function` is its attribute, other arguments are `make_program`'s."""
    jitted = lambda blueprint: operator.attrgetter(function)(HeldOutPrograms(blueprint))  # noqa: E731
    return make_program(blueprint, state, name, jitted, given, phase="measure", **fields)


def _two_sample_base(blueprint: Blueprint) -> Params | None:
    """The student's first weights, which the two-sample test reads anew. A run of adapters has them already."""
    if blueprint.generator.config.lora or not blueprint.config.evaluation.two_sample_folds:
        return None
    return layouts.abstract_params(blueprint.generator, blueprint.mesh)
