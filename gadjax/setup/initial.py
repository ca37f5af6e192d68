"""The parameters that a run starts from: read from files, drawn at random, or grown from the generator."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gadjax.models import layouts, lora
from gadjax.models.model import Model, Params, grow_discriminator
from gadjax.models.weights import load_params
from gadjax.setup.prepare import Setup


def initial_base(setup: Setup) -> Params | None:
    """The student's frozen parameters in the compute dtype, on which adapters stand; None if there are no adapters."""
    model = setup.generator
    abstract = lora.frozen(layouts.abstract_params(model, setup.mesh, model.config.dtype))
    return abstract and load_params(setup.student, model.config, abstract)


def initial_generator(setup: Setup) -> Params:
    """The generator's trained parameters, float32 in the training layout: the student's, or fresh adapters."""
    model, mesh = setup.generator, setup.mesh
    if setup.config.random_init or model.config.lora:
        return draw_program(model, mesh)(_key(setup, 0))
    return load_params(setup.student, model.config, layouts.abstract_params(model, mesh))


def initial_discriminator(setup: Setup, generator: Params) -> Params:
    """The discriminator's trained parameters: the checkpoint's that the config names, or grown with a fresh head.

    Args:
      setup: the run.
      generator: the trained parameters that the discriminator grows from if the config names no checkpoint.
    """
    model, key = setup.discriminator, _key(setup, 1)
    if setup.config.discriminator.random_init:
        return draw_program(model, setup.mesh)(key)
    if setup.discriminator_init is None:
        return growth_program(model, setup.mesh)(generator, key)
    abstract = layouts.abstract_params(model, setup.mesh)
    if model.head == "lm":
        return load_params(setup.discriminator_init, model.config, abstract)
    head = jax.jit(model.init_head, out_shardings=_shardings(model, setup.mesh)["score"])(key)
    return load_params(setup.discriminator_init, model.config, abstract, missing={"score": head})


def draw_program(model: Model, mesh: Mesh) -> Callable[[jax.Array], Params]:
    """The program that draws a model's trained parameters from a key."""
    return jax.jit(lambda key: lora.trained(model.init(key)), out_shardings=_shardings(model, mesh))


def growth_program(model: Model, mesh: Mesh) -> Callable[[Params, jax.Array], Params]:
    """The program that makes a discriminator's first parameters of the generator's, and of a key for a fresh head."""

    def grow(generator: Params, key: jax.Array) -> Params:
        if model.head == "lm":  # the generator's own head stays
            return jax.tree.map(jnp.copy, generator)
        return grow_discriminator(generator, model.init_head(key))

    return jax.jit(grow, out_shardings=_shardings(model, mesh))


def _shardings(model: Model, mesh: Mesh) -> Params:
    """The training layout of a model's trained parameters."""
    return lora.trained(layouts.param_shardings(model, mesh))


def _key(setup: Setup, number: int) -> jax.Array:
    """The key of the generator's (0) or the discriminator's (1) random parameters."""
    return jax.random.fold_in(jax.random.key(setup.config.seed), 1000 + number)
