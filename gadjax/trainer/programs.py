"""The compiled programs of one stage: each jitted once, with its layout, and its states donated."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from gadjax.data.packing import Packed
from gadjax.distill import steps, updates
from gadjax.distill.advantages import group_advantages
from gadjax.distill.method import Method
from gadjax.parallel import mesh as layout
from gadjax.trainer.blueprint import state_shardings


class Programs:
    """Samples, discriminator update, policy update and cross-entropy update of a `Method` on a mesh.

    The arguments may be numpy arrays; `place_rows` puts rows where they belong. `base`, which no update changes, is
    never donated.
    """

    def __init__(self, method: Method, mesh: Mesh):
        self.method, self.mesh = method, mesh
        whole = layout.replicated(mesh)
        generator = state_shardings(method.generator, method.generator_optimizer, mesh)
        self.sample = jax.jit(functools.partial(steps.sample, method), out_shardings=whole)  # every host packs all
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
        self.update_policy = jax.jit(self._update_policy, donate_argnums=0, out_shardings=(generator, whole))

    def _update_policy(self, state, reference, rows, sampled, rewards, teacher, base=None):
        advantages = group_advantages(rewards)
        return updates.update_policy(self.method, state, reference, rows, sampled, advantages, teacher, base=base)

    def place_batch(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Puts a host batch on the devices, its prompts split over the batch axes."""
        return layout.place(batch, layout.rows(self.mesh))


def place_rows(mesh: Mesh, rows: Packed, *, leading: int = 1) -> Packed:
    """Puts host rows on the devices, split over the batch axes after `leading` axes of micro-batches."""
    split = jax.tree.map(lambda _: layout.rows(mesh, leading=leading), rows)
    return layout.place(rows, split.replace(last=layout.replicated(mesh)))  # `last` is of sequences, not of rows
