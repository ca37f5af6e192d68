"""The compiled programs of a run, each jitted once with its layout: those of its steps, and of held-out figures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gadjax.data.packing import Packed
from gadjax.distill import steps, updates
from gadjax.distill.discriminator import update_discriminator
from gadjax.distill.forward import per_sequence, pooled_scores, response_logprobs
from gadjax.distill.method import Method
from gadjax.distill.rewards import advantages
from gadjax.distill.state import state_shardings
from gadjax.evaluation.two_sample import Classifier, adamw_for
from gadjax.models import layouts
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as meshes
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Samples
from gadjax.setup.blueprint import Blueprint, make_method

SAMPLED_FROM = ("prompt", "prompt_length", "row")  # what sampling reads of a batch
_PROMPTS_AT_ONCE = 64


class Programs:
    """The programs of a stage's steps: sampling, scoring and the updates of a `Method` on a mesh.

    Updates donate the state that they are given, never `base`, which nothing changes. Arguments may be numpy arrays;
    `place_rows` puts rows on the devices.
    """

    def __init__(self, method: Method, mesh: Mesh):
        self.method, self.mesh = method, mesh
        whole = meshes.replicated(mesh)
        generator = state_shardings(method.generator, method.generator_optimizer, mesh)
        sampler = method.sampler or method.generator
        self.decoding_mesh = sampler.mesh or mesh
        self.decoding_params = jit_to_move(functools.partial(steps.decoding_params, method), mesh)
        self.sample_batch = jax.jit(
            functools.partial(steps.sample_batch, method),
            out_shardings=meshes.replicated(self.decoding_mesh),  # whole on every host, which packs all rows
        )
        self.update_supervised = jax.jit(
            functools.partial(updates.update_supervised, method),
            donate_argnums=0,
            out_shardings=(generator, whole),
        )
        if method.discriminator is None:
            return
        discriminator = state_shardings(method.discriminator, method.discriminator_optimizer, mesh)
        self.teach_discriminator = jax.jit(
            functools.partial(updates.update_supervised, method, network="discriminator"),
            donate_argnums=0,
            out_shardings=(discriminator, whole),
        )
        self.baseline_logprobs = jax.jit(functools.partial(updates.baseline_logprobs, method), out_shardings=whole)
        self.update_discriminator = jax.jit(
            functools.partial(update_discriminator, method),
            donate_argnums=0,
            static_argnames="fresh",
            out_shardings=(discriminator, whole, whole),
        )
        self.score = jax.jit(
            functools.partial(update_discriminator, method, train=False),
            static_argnames="fresh",
            out_shardings=(None, whole, whole),  # the state is returned as it is, not copied
        )
        self.reference_logprobs = jax.jit(
            functools.partial(updates.reference_logprobs, method), out_shardings=meshes.rows(mesh, leading=2)
        )
        self.advantages = jax.jit(functools.partial(advantages, method), out_shardings=whole)
        self.update_policy = jax.jit(
            functools.partial(updates.update_policy, method),
            donate_argnums=0,
            out_shardings=(generator, whole),
        )

    def sample(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, base: Params | None = None
    ) -> Samples:
        """Samples for a batch that `place_batch` has placed, whole on every device."""
        return self.sample_batch(self.decoding_params(params, base=base), batch, key)

    def place_batch(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Puts the part of a host batch that sampling reads on its devices, the prompts split over the batch axes."""
        read = {name: batch[name] for name in SAMPLED_FROM}
        return meshes.place(read, meshes.rows(self.decoding_mesh))

    def abstract_batch(self, count: int, width: int) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
        """An abstract batch of `count` prompts of `width` tokens, as `place_batch` places it, and an abstract key."""
        place = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=meshes.rows(self.decoding_mesh))
        batch = dict(zip(SAMPLED_FROM, (place((count, width)), place((count,)), place((count,))), strict=True))
        return batch, jax.eval_shape(lambda: jax.random.key(0))


class HeldOutPrograms:
    """The programs of held-out figures: likelihoods, scores, sampling, and the two-sample test's classifier.

    They take whole trees of parameters: adapters come joined with their base.

    Attributes:
      parts: for each network, the number of micro-batches in a batch of training.
      compares: whether the discriminator is a language model, whose scores are against the generator.
    """

    def __init__(self, blueprint: Blueprint):
        config, mesh = blueprint.config, blueprint.mesh
        methods = [make_method(blueprint, stage) for stage in config.stages]
        self.parts = {
            "generator": max(method.generator_micro_batches for method in methods),
            "discriminator": max(method.discriminator_micro_batches for method in methods),
        }
        decoding_params = functools.partial(layouts.decoding_params, blueprint.sampler, trained_on=mesh)
        self.decoding_params = jit_to_move(decoding_params, mesh)
        self.engine = Engine(blueprint.sampler, blueprint.sampler.mesh, batch_size=prompts_at_once(blueprint))
        whole = meshes.replicated(mesh)
        likelihoods = functools.partial(_log_likelihoods, blueprint.generator, config.logprob_chunk)
        self.likelihoods = jax.jit(likelihoods, out_shardings=whole)
        self.compares = blueprint.discriminator.head == "lm"
        score: Any = functools.partial(_scores, blueprint.discriminator, config.discriminator.pooling)
        if self.compares:
            score = functools.partial(_ratios, blueprint)
        self.scores = jax.jit(score, out_shardings=whole)
        model, optimizer = fresh_classifier(blueprint), adamw_for(config.evaluation.two_sample_learning_rate)
        self.classifier = Classifier(model, optimizer, state_shardings(model, optimizer, mesh))

    def judges(self, discriminator: Params, generator: Params) -> tuple[Params, ...]:
        """The networks that `scores` reads: a likelihood discriminator is compared with the generator."""
        return (discriminator, generator) if self.compares else (discriminator,)


def fresh_classifier(blueprint: Blueprint) -> Model:
    """The classifier of the two-sample test. It has the student's architecture, whatever the discriminator has."""
    return Model(blueprint.generator.config, "score", blueprint.mesh)


def prompts_at_once(blueprint: Blueprint) -> int:
    """How many held-out prompts are decoded at once: their KV caches take no more memory than a rollout's."""
    slots, limit = blueprint.config.rollout.slots, blueprint.config.data.max_response_length
    cached = slots * limit + slots // blueprint.config.rollout.num_samples * blueprint.prompt_width
    return min(_PROMPTS_AT_ONCE, max(1, cached // blueprint.sequence_length)) if slots else _PROMPTS_AT_ONCE


def _log_likelihoods(model: Model, chunk: int, params: Params, rows: Packed, *, temperature: float = 1.0) -> jax.Array:
    def micro_batch(rows):
        logprobs, _ = response_logprobs(model, params, rows, temperature=temperature, chunk=chunk)
        return per_sequence(logprobs, rows)

    return jnp.sum(jax.lax.map(micro_batch, rows), axis=0)


def _scores(model: Model, pooling: str, networks: tuple[Params], rows: Packed) -> jax.Array:
    return jnp.sum(jax.lax.map(lambda rows: pooled_scores(model, networks[0], rows, pooling), rows), axis=0)


def _ratios(blueprint: Blueprint, networks: tuple[Params, Params], rows: Packed) -> jax.Array:
    """The scores of a likelihood discriminator against the generator as it is, at the rollout's temperature."""
    config, (critic, generator) = blueprint.config, networks
    ours = _log_likelihoods(blueprint.discriminator, config.logprob_chunk, critic, rows)
    scaled = config.rollout.temperature
    theirs = _log_likelihoods(blueprint.generator, config.logprob_chunk, generator, rows, temperature=scaled)
    return config.discriminator.beta * (ours - theirs)


def jit_to_move(decoding_params: Callable[..., Params], mesh: Mesh) -> Any:
    """A function that lays weights out for sampling, jitted where they move between devices.

    On one device nothing moves, and a jitted function would copy the weights that need no cast: a base of adapters.
    """
    return decoding_params if mesh.size == 1 else jax.jit(decoding_params)


def place_rows(mesh: Mesh, rows: Packed, *, leading: int = 1) -> Packed:
    """Puts host rows on the devices. They are split over the batch axes, behind `leading` axes of micro-batches."""
    return meshes.place(rows, _row_shardings(mesh, rows, leading))


def abstract_rows(mesh: Mesh, rows: Packed, *, leading: int = 1) -> Packed:
    """Rows as `place_rows` places them, as `jax.ShapeDtypeStruct`s."""
    return meshes.with_shardings(rows, _row_shardings(mesh, rows, leading))


def _row_shardings(mesh: Mesh, rows: Packed, leading: int) -> Packed:
    split = jax.tree.map(lambda _: meshes.rows(mesh, leading=leading), rows)
    return split.replace(last=meshes.replicated(mesh))  # `last` has an axis of sequences, not of rows
