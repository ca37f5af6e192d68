"""The parameters that a run starts from: read from files, drawn at random, or grown from the generator."""

from __future__ import annotations

import jax

from gadjax.models import layouts, lora
from gadjax.models.model import Params, grow_discriminator
from gadjax.models.weights import load_params
from gadjax.setup.prepare import Setup


def initial_base(setup: Setup) -> Params | None:
    """What adapters stand on: the student's parameters in the compute dtype; None where there are no adapters."""
    model = setup.generator
    abstract = lora.frozen(layouts.abstract_params(model, setup.mesh, model.config.dtype))
    return abstract and load_params(setup.student, model.config, abstract)


def initial_generator(setup: Setup) -> Params:
    """The student's float32 parameters in the training layout; with a base, adapters that change nothing."""
    model, mesh = setup.generator, setup.mesh
    if setup.config.random_init or model.config.lora:
        shardings = lora.trained(layouts.param_shardings(model, mesh))
        return jax.jit(lambda key: lora.trained(model.init(key)), out_shardings=shardings)(_key(setup, "generator"))
    return load_params(setup.student, model.config, layouts.abstract_params(model, mesh))


def initial_discriminator(setup: Setup, generator: Params) -> Params:
    """The discriminator's parameters: of the checkpoint `discriminator.init`, else grown with a fresh head.

    Args:
      generator: the trained parameters to grow it from, where no checkpoint is named.
    """
    model, shardings = setup.discriminator, lora.trained(layouts.param_shardings(setup.discriminator, setup.mesh))
    key = _key(setup, "discriminator")
    if setup.discriminator_init is None:
        grow = lambda generator, key: grow_discriminator(generator, model.init_head(key))  # noqa: E731
        return jax.jit(grow, out_shardings=shardings)(generator, key)
    head = jax.jit(model.init_head, out_shardings=shardings["score"])(key)
    abstract = layouts.abstract_params(model, setup.mesh)
    return load_params(setup.discriminator_init, model.config, abstract, missing={"score": head})


def _key(setup: Setup, network: str) -> jax.Array:
    number = ("generator", "discriminator").index(network)
    return jax.random.fold_in(jax.random.key(setup.config.seed), 1000 + number)
