"""The parameters that a run starts from: read from files, drawn at random, or grown from the generator."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gadjax.models import layouts, lora
from gadjax.models.model import Params, grow_discriminator
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
        shardings = lora.trained(layouts.param_shardings(model, mesh))
        return jax.jit(lambda key: lora.trained(model.init(key)), out_shardings=shardings)(_key(setup, 0))
    return load_params(setup.student, model.config, layouts.abstract_params(model, mesh))


def initial_discriminator(setup: Setup, generator: Params) -> Params:
    """The discriminator's trained parameters: the checkpoint's that the config names, or grown with a fresh head.

    Args:
      setup: the run.
      generator: the trained parameters that the discriminator grows from if the config names no checkpoint.
    """
    model, shardings = setup.discriminator, lora.trained(layouts.param_shardings(setup.discriminator, setup.mesh))
    key, keeps_head = _key(setup, 1), model.head == "lm"
    if setup.config.discriminator.random_init:
        return jax.jit(model.init, out_shardings=shardings)(key)
    if setup.discriminator_init is None:
        copy = functools.partial(jax.tree.map, jnp.copy)
        grow = lambda generator, key: grow_discriminator(generator, model.init_head(key))  # noqa: E731
        if keeps_head:
            return jax.jit(copy, out_shardings=shardings)(generator)
        return jax.jit(grow, out_shardings=shardings)(generator, key)
    abstract = layouts.abstract_params(model, setup.mesh)
    if keeps_head:
        return load_params(setup.discriminator_init, model.config, abstract)
    head = jax.jit(model.init_head, out_shardings=shardings["score"])(key)
    return load_params(setup.discriminator_init, model.config, abstract, missing={"score": head})


def _key(setup: Setup, number: int) -> jax.Array:
    """The key of the generator's (0) or the discriminator's (1) random parameters."""
    return jax.random.fold_in(jax.random.key(setup.config.seed), 1000 + number)
