"""The compiled programs of one stage: each jitted once, with its layout, and its states donated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from gadjax.data.packing import Packed
from gadjax.distill import steps, updates
from gadjax.distill.advantages import group_advantages
from gadjax.distill.method import Method
from gadjax.models.model import Params
from gadjax.parallel import mesh as layout
from gadjax.rollout.sampler import Samples
from gadjax.trainer.blueprint import state_shardings

SAMPLED_FROM = ("prompt", "prompt_length", "row")  # of a batch


class Programs:
    """Samples, discriminator update, policy update and cross-entropy update of a `Method` on a mesh.

    The arguments may be numpy arrays; `place_rows` puts rows where they belong. `base`, which no update changes, is
    never donated.
    """

    def __init__(self, method: Method, mesh: Mesh):
        self.method, self.mesh = method, mesh
        whole = layout.replicated(mesh)
        generator = state_shardings(method.generator, method.generator_optimizer, mesh)
        sampler = method.sampler or method.generator
        self.decoding_mesh = sampler.mesh or mesh
        self.decoding_params = jit_to_move(functools.partial(steps.decoding_params, method), mesh)
        self.sample_batch = jax.jit(
            functools.partial(steps.sample_batch, method),
            out_shardings=layout.replicated(self.decoding_mesh),  # every host packs all
        )
        self.update_supervised = jax.jit(
            functools.partial(updates.update_supervised, method),
            donate_argnums=0,
            out_shardings=(generator, whole),
        )
        if method.discriminator is None:
            return
        discriminator = state_shardings(method.discriminator, method.discriminator_optimizer, mesh)
        self.update_discriminator = jax.jit(
            functools.partial(updates.update_discriminator, method),
            donate_argnums=0,
            static_argnames="fresh",
            out_shardings=(discriminator, whole, whole),
        )
        self.score = jax.jit(
            functools.partial(updates.update_discriminator, method, train=False),
            out_shardings=(None, whole, whole),  # the state is the argument itself, not a copy
        )
        self.reference_logprobs = jax.jit(
            functools.partial(updates.reference_logprobs, method), out_shardings=layout.rows(mesh, leading=2)
        )
        self.update_policy = jax.jit(self._update_policy, donate_argnums=0, out_shardings=(generator, whole))

    def _update_policy(self, state, before, rows, sampled, rewards, teacher, base=None):
        advantages = group_advantages(rewards)
        return updates.update_policy_from(self.method, state, before, rows, sampled, advantages, teacher, base=base)

    def sample(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, base: Params | None = None
    ) -> Samples:
        """Samples of a batch that `place_batch` placed, whole on every device."""
        return self.sample_batch(self.decoding_params(params, base=base), batch, key)

    def place_batch(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Puts what sampling reads of a host batch on its devices, the prompts split over the batch axes."""
        read = {name: batch[name] for name in SAMPLED_FROM}
        return layout.place(read, layout.rows(self.decoding_mesh))


def jit_to_move(decoding_params: Callable[..., Params], mesh: Mesh) -> Callable[..., Params]:
    """A function that lays weights out for sampling, jitted where they have to move.

    On one device there is nothing to move, and a jitted function would copy what needs no cast: a base of adapters.
    """
    return decoding_params if mesh.size == 1 else jax.jit(decoding_params)


def place_rows(mesh: Mesh, rows: Packed, *, leading: int = 1) -> Packed:
    """Puts host rows on the devices, split over the batch axes after `leading` axes of micro-batches."""
    split = jax.tree.map(lambda _: layout.rows(mesh, leading=leading), rows)
    return layout.place(rows, split.replace(last=layout.replicated(mesh)))  # `last` is of sequences, not of rows
