"""The method with adapters over one base: what is trained is a tree of its own, with the numbers of the whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.distill import state as states
from gadjax.distill import steps, updates
from gadjax.distill.discriminator import update_discriminator
from gadjax.models import lora
from gadjax.models.weights import named_leaves
from gadjax.parallel import mesh as meshes
from tests.distill.policy import update_against

WHOLE = {"gad": steps.gad_step, "warmup": steps.warmup_step}

STEP = 5  # steps of the run done before; it seeds the sampling


def names(params) -> set[str]:
    return {name.rpartition("/")[2] for name in named_leaves(params)}


UPDATES = {"policy": update_against, "supervised": updates.update_supervised, "discriminator": update_discriminator}


@pytest.mark.parametrize("update", UPDATES)
def test_gradients_are_those_of_the_whole_tree_that_belong_to_adapters(adapted, keep_gradient, update):
    """The oracle trains every parameter, base and all, in the same update."""
    parts = dict(generator_micro_batches=2, discriminator_micro_batches=2, sft_coefficient=0.5)
    method = adapted.method(generator_optimizer=keep_gradient, discriminator_optimizer=keep_gradient, **parts)
    network = "discriminator" if update == "discriminator" else "generator"
    if update == "policy":
        inputs = (*adapted.policy_rows(method), adapted.advantages, adapted.teacher_rows(method))
    else:
        inputs = adapted.groups(method) if network == "discriminator" else (adapted.teacher_rows(method),)

    def run(params, reference, base):
        function = functools.partial(UPDATES[update], method, base=base)
        state = states.create(jax.tree.map(jnp.array, params), keep_gradient)
        return jax.jit(function)(state, *[reference] * (update == "policy"), *inputs)

    base = jax.tree.map(jnp.array, adapted.base)
    whole = functools.partial(lora.join, base)
    state, *_, metrics = run(adapted.params[network], adapted.reference, base)
    expected, *_, expected_metrics = run(whole(adapted.params[network]), whole(adapted.reference), None)
    assert names(state.params) == {"lora_a", "lora_b"} | ({"kernel", "bias"} if network == "discriminator" else set())
    gradients, oracle = named_leaves(state.opt_state), named_leaves(lora.trained(expected.opt_state))
    assert gradients.keys() == oracle.keys()
    for name, gradient in gradients.items():
        scale = np.abs(oracle[name]).max()
        if name == "score/bias":  # which moves both scores of a pair alike: rounding is all that there is
            assert scale < 1e-6 and np.abs(gradient).max() < 1e-6
            continue
        assert scale > 0, name
        np.testing.assert_allclose(gradient, oracle[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)
    ours = {name: value for name, value in metrics.items() if not name.endswith("grad_norm")}
    for name, value in ours.items():
        np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert metrics[f"{network}/grad_norm"] < expected_metrics[f"{network}/grad_norm"]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_kl_of_the_first_step_is_exactly_zero(adapted, micro_batches):
    """float32: the reference is a copy of the generator's adapters."""
    method = adapted.method(generator_micro_batches=micro_batches)
    state, reference = adapted.state(method), jax.tree.map(jnp.array, adapted.params["generator"])
    rows, sampled = adapted.policy_rows(method)
    update = jax.jit(functools.partial(update_against, method))
    _, metrics = update(state.generator, reference, rows, sampled, adapted.advantages, base=state.base)
    assert metrics["generator/kl"] == 0.0
    assert metrics["generator/grad_norm"] > 0


@pytest.mark.parametrize("stage", [pytest.param("warmup", marks=pytest.mark.slow), "gad"])  # whose updates gad has too
def test_the_trainer_on_eight_devices_is_the_whole_step_on_one(adapted, stage):
    """Packing and the mesh change no number; the base stays where and what it is, and no update takes it."""
    settings = dict(micro_batches__discriminator=2, optimizer__eps=1e-4)
    trainer, state = adapted.trainer(stage, meshes.make_mesh(2, 2, 2), **settings)
    whole = jax.jit(functools.partial(WHOLE[stage], steps.PureParts(trainer.method)))
    key = jax.random.fold_in(jax.random.key(0), STEP)
    expected, metrics, samples = whole(adapted.state(trainer.method), adapted.batch, key)
    assert len(np.unique(samples.lengths)) > 2

    base = named_leaves(state.base)
    measured, measured_metrics = trainer.run(state, adapted.batch, stage_step=0, step=STEP)
    assert measured_metrics["tokens"] == samples.lengths.sum(), "the same samples"
    assert measured_metrics["generator/" + ("kl" if stage == "gad" else "loss")] > 0
    for name, value in metrics.items():
        np.testing.assert_allclose(measured_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    rate = trainer.section.generator_learning_rate
    for network, before in adapted.params.items():
        ours, theirs = (named_leaves(getattr(side, network).params) for side in (measured, expected))
        assert ours.keys() == theirs.keys() == named_leaves(before).keys()
        for name, leaf in ours.items():
            np.testing.assert_allclose(leaf, theirs[name], rtol=1e-4, atol=3e-3 * rate, err_msg=name)
            moved = np.abs(leaf - named_leaves(before)[name]).max() > 0.3 * rate
            assert moved == (name != "score/bias"), f"{name}: the bias alone cancels out of score differences"
    for name, leaf in named_leaves(measured.base).items():
        assert leaf is base[name] and not leaf.is_deleted()
    a = measured.generator.params["layers"]["mlp"]["gate"]["lora_a"]
    b = measured.generator.params["layers"]["mlp"]["gate"]["lora_b"]
    assert a.addressable_shards[0].data.shape == (2, 16, 3) and b.addressable_shards[0].data.shape == (2, 3, 24)


def test_the_sampler_s_log_probs_are_the_trainer_s(adapted):
    """Sampled from weights with the adapters in them, computed with the adapters beside them: one distribution."""
    method = adapted.method()
    state = adapted.state(method)
    key = jax.random.key(1)
    samples = jax.jit(functools.partial(steps.sample, method))(
        state.generator.params, adapted.batch, key, base=state.base
    )
    rows, sampled = steps.PureParts(method).policy_rows(adapted.batch, samples)
    advantages = jnp.asarray(adapted.advantages)
    update = jax.jit(functools.partial(update_against, method))
    _, metrics = update(state.generator, state.reference, rows, sampled, advantages, base=state.base)
    assert metrics["generator/sampler_gap"] < 1e-5
    bare = jax.tree.map(jnp.zeros_like, state.generator.params)
    _, metrics = update(
        state.generator.replace(params=bare), state.reference, rows, sampled, advantages, base=state.base
    )
    assert metrics["generator/sampler_gap"] > 0.1, "the adapters matter"
