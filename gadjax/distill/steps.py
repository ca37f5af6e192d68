"""The three kinds of step, as pure functions of states: SeqKD, warmup and GAD (`docs/algorithm.md`, sections 2, 3).

Each can be jitted whole, sampling loop included; they lay out one sequence a row. The trainer calls the same parts
(`sample` and the functions of `updates`) with rows packed by the host between them; a test holds the two equal.
"""

from __future__ import annotations

import jax

from gadjax.distill.advantages import group_advantages
from gadjax.distill.method import Method
from gadjax.distill.rows import Batch, group_rows, policy_rows, teacher_rows
from gadjax.distill.state import GadState
from gadjax.distill.updates import Metrics, update_discriminator, update_policy, update_supervised
from gadjax.models import layouts
from gadjax.models.lora import join
from gadjax.models.model import Params
from gadjax.rollout.sampler import Samples, rollout, row_keys


def gad_step(method: Method, state: GadState, batch: Batch, key: jax.Array) -> tuple[GadState, Metrics, Samples]:
    """One whole GAD step: rollout, score, discriminator update, advantages, policy update.

    The rewards are the scores of the discriminator before its update: they come out of the forward pass of that very
    update (`docs/algorithm.md`, section 3.4). `state.reference` is required.
    """
    samples = sample(method, state.generator.params, batch, key, base=state.base)
    groups, weight = group_rows(method, batch, samples)
    discriminator, scores, of_discriminator = update_discriminator(
        method, state.discriminator, groups, weight, base=state.base
    )
    rows, sampled = policy_rows(method, batch, samples)
    teacher = teacher_rows(method, batch) if method.sft_coefficient else None
    advantages = group_advantages(scores[:, 1:])
    generator, of_generator = update_policy(
        method, state.generator, state.reference, rows, sampled, advantages, teacher, base=state.base
    )
    state = state.replace(generator=generator, discriminator=discriminator)
    return state, of_discriminator | of_generator, samples


def warmup_step(
    method: Method, state: GadState, batch: Batch, key: jax.Array, *, train_generator: bool = True
) -> tuple[GadState, Metrics, Samples]:
    """One whole warmup step: rollout, score, discriminator update, then cross entropy on the teacher's responses.

    The first steps of the stage run with `train_generator` off.
    """
    samples = sample(method, state.generator.params, batch, key, base=state.base)
    groups, weight = group_rows(method, batch, samples)
    discriminator, _, metrics = update_discriminator(method, state.discriminator, groups, weight, base=state.base)
    state = state.replace(discriminator=discriminator)
    if train_generator:
        state, of_generator = seqkd_step(method, state, batch)
        metrics |= of_generator
    return state, metrics, samples


def seqkd_step(method: Method, state: GadState, batch: Batch) -> tuple[GadState, Metrics]:
    """One whole SeqKD step: cross entropy on the teacher's responses."""
    generator, metrics = update_supervised(method, state.generator, teacher_rows(method, batch), base=state.base)
    return state.replace(generator=generator), metrics


def sample(method: Method, params: Params, batch: Batch, key: jax.Array, *, base: Params | None = None) -> Samples:
    """N responses to each of the batch's prompts, each row with a key of its own.

    The trainer calls the two parts of it, each a program of its own: their meshes may differ.
    """
    return sample_batch(method, decoding_params(method, params, base=base), batch, key)


def decoding_params(method: Method, params: Params, *, base: Params | None = None) -> Params:
    """The generator's parameters as the token loop reads them."""
    sampler = method.sampler or method.generator
    return layouts.decoding_params(sampler, join(base, params), method.generator.mesh)


def sample_batch(method: Method, params: Params, batch: Batch, key: jax.Array) -> Samples:
    """`sample` with parameters that are laid out for it."""
    model = method.sampler or method.generator
    keys = row_keys(key, batch["row"])
    prompt = batch["prompt"], batch["prompt_length"]
    return rollout(model, params, *prompt, keys, method.num_samples, method.sampling, method.slots)[0]
