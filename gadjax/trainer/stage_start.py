"""The state at the start of a stage: fresh optimizers, the discriminator's first weights, and the KL's reference."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gadjax.config.check import grows_from_generator, keeps_statistics, needs_reference, uses_discriminator
from gadjax.distill import state as states
from gadjax.distill.rewards import Statistics
from gadjax.distill.state import GadState, TrainState, state_shardings
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as meshes
from gadjax.setup.blueprint import make_method
from gadjax.setup.initial import initial_discriminator, initial_generator
from gadjax.setup.prepare import Setup
from gadjax.trainer.offload import Offload


def enter_stage(
    setup: Setup,
    stage: str,
    generator: Params,
    discriminator: Params | None = None,
    *,
    base: Params | None = None,
    is_first: bool,
) -> GadState:
    """The state at a stage's start (`docs/algorithm.md`, section 3.6).

    Args:
      setup: the run.
      stage: the stage that begins.
      generator: the generator's trained parameters as the stage before left them; taken over.
      discriminator: the discriminator's, or None where there is none yet; taken over.
      base: what the parameters are adapters of; None where everything is trained.
      is_first: whether the run begins here.
    """
    method, offload = make_method(setup, stage), Offload.of(setup.config)
    reference = None
    if needs_reference(setup.config, stage):
        dtype = setup.generator.config.dtype
        reference = jax.tree.map(lambda leaf: jnp.array(leaf, dtype, copy=True), generator)
    critic = uses_discriminator(setup.config, stage)
    if critic and discriminator is None:
        discriminator = _first_discriminator(setup, generator, is_first=is_first)
    created = _create(setup, generator, method.generator, method.generator_optimizer)
    state = GadState(created, reference=reference, statistics=_no_statistics(setup, stage), base=base)
    state = offload.arrange(state, "rollout")
    if critic:
        created = _create(setup, discriminator, method.discriminator, method.discriminator_optimizer)
        state = offload.arrange(state.replace(discriminator=created), "rollout")
    return state


def _no_statistics(setup: Setup, stage: str) -> Statistics | None:
    """Statistics of no rewards on every device, for a stage that keeps some."""
    if not keeps_statistics(setup.config, stage):
        return None
    return jax.jit(Statistics.none, out_shardings=meshes.replicated(setup.mesh))()


def _first_discriminator(setup: Setup, generator: Params, *, is_first: bool) -> Params:
    """The discriminator's first parameters.

    They come from the checkpoint that the config names; or they grow from the student, or from the generator as it is.
    """
    if setup.discriminator_init is None and not is_first and not grows_from_generator(setup.config):
        generator = initial_generator(setup)
    return initial_discriminator(setup, generator)


def _create(setup: Setup, params: Params, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state in the training layout; takes the parameters over."""
    return create_program(model, optimizer, setup.mesh)(params)


def create_program(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> Callable[[Params], TrainState]:
    """The program that makes a fresh state of a model's trained parameters, which it takes over."""
    shardings = state_shardings(model, optimizer, mesh)
    return jax.jit(lambda params: states.create(params, optimizer), donate_argnums=0, out_shardings=shardings)
