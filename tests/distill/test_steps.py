"""Whole steps: the pure functions of `distill.steps` against the trainer, which packs rows on the host in between."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.distill import steps
from gadjax.parallel import mesh as meshes
from tests.distill.policy import update_against

WHOLE = {"gad": steps.gad_step, "warmup": steps.warmup_step}
STEP = 5  # steps of the run done before; it seeds the sampling


def whole_step(tiny, method, stage, state=None, **options):
    """The jitted step of a stage and the samples that it drew, on one device."""
    step = jax.jit(functools.partial(WHOLE[stage], steps.PureParts(method), **options))
    key = jax.random.fold_in(jax.random.key(0), STEP)
    return step(state or tiny.state(method), tiny.batch, key)


def assert_states_close(measured, expected, **tolerance):
    """Networks, moments and counters."""
    pairs = [(measured.generator, expected.generator), (measured.discriminator, expected.discriminator)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), *map(tuple, zip(*pairs, strict=True)))


def assert_metrics_close(measured, expected, **tolerance):
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name], value, err_msg=name, **tolerance)


def distance(new, old) -> float:
    return max(float(np.max(np.abs(n - o))) for n, o in zip(*map(jax.tree.leaves, (new, old)), strict=True))


CASES = {
    "gad": ("gad", {}),
    "gad_minibatches": (
        "gad",
        dict(
            gad__ppo_minibatches=2,
            gad__ppo_epochs=2,
            micro_batches__generator=2,
            micro_batches__discriminator=2,
            gad__aggregation="sequence_mean",
        ),
    ),
    "gad_options": (
        "gad",
        dict(
            micro_batches__generator=4,
            micro_batches__discriminator=4,
            gad__sft_coefficient=0.5,
            gad__importance_cap=1.01,
            discriminator__updates_per_step=2,
            discriminator__loss="ce",
        ),
    ),
    "warmup": ("warmup", dict(micro_batches__generator=4, discriminator__bt_temperature=2.0)),
    # A share of replay means nothing without a ring.
    "warmup_discriminator_only": (
        "warmup",
        dict(warmup__discriminator_only_steps=STEP + 1, discriminator__replay_share=1.0),
    ),
}


LIKELIHOOD = dict(discriminator__kind="likelihood", discriminator__beta=0.5)
LIKELIHOOD_CASES = {
    "gad_tokens": (
        "gad",
        dict(gad__credit="token", gad__discount=0.5, gad__whitening="batch", gad__reward_clip=1.5),
    ),
    "gad_sequences": (
        "gad",
        dict(
            discriminator__baseline="reference",
            discriminator__sft_coefficient=0.3,
            discriminator__updates_per_step=2,
            micro_batches__discriminator=2,
            gad__reward_baseline="reference",
            gad__reward="bounded",
            gad__whitening="running",
        ),
    ),
    "gad_demonstrations": (
        "gad",
        dict(gad__demonstrations=0.5, gad__demonstration_reward=0.0, gad__sft_coefficient=0.1),
    ),
    "gad_annealed": (
        "gad",
        dict(gad__demonstrations=0.5, gad__demonstration_steps=2, gad__ppo_epochs=2, gad__credit="token"),
    ),
    "warmup": ("warmup", dict(discriminator__baseline="reference")),
}


@pytest.mark.parametrize(("stage", "settings"), LIKELIHOOD_CASES.values(), ids=LIKELIHOOD_CASES)
def test_the_trainer_s_step_with_a_likelihood_discriminator(likelihoods, stage, settings):
    trainer, state = likelihoods.trainer(stage, **LIKELIHOOD, **settings)
    expected, metrics, _ = whole_step(likelihoods, trainer.method, stage)
    measured, measured_metrics = trainer.run(state, likelihoods.batch, stage_step=STEP, step=STEP)
    assert_states_close(measured, expected, rtol=1e-9, atol=1e-12)
    assert_metrics_close(measured_metrics, metrics, rtol=1e-6, atol=1e-12)
    for network in likelihoods.params:
        assert distance(getattr(measured, network).params, likelihoods.params[network]) > 1e-3
    if "gad__whitening" in settings and settings["gad__whitening"] == "running":
        assert measured.statistics.count == expected.statistics.count == likelihoods.samples.lengths.size


def test_token_credit_with_a_scalar_head(bigrams):
    settings = dict(gad__credit="token", discriminator__pooling="mean", micro_batches__discriminator=2)
    trainer, state = bigrams.trainer("gad", **settings)
    expected, metrics, _ = whole_step(bigrams, trainer.method, "gad")
    measured, measured_metrics = trainer.run(state, bigrams.batch, stage_step=STEP, step=STEP)
    assert_states_close(measured, expected, rtol=1e-9, atol=1e-12)
    assert_metrics_close(measured_metrics, metrics, rtol=1e-6, atol=1e-12)


def test_soda_keeps_a_prompt_s_sample(likelihoods):
    """The trainer's step is the whole one; the sample is the reference's, and the same in every step."""
    trainer, state = likelihoods.trainer("soda", soda__beta=0.5)
    step = jax.jit(functools.partial(steps.soda_step, steps.PureParts(trainer.method)))
    expected, metrics, samples = step(likelihoods.state(trainer.method), likelihoods.batch, jax.random.key(0))
    assert samples.tokens.shape[1] == 1
    measured, measured_metrics = trainer.run(state, likelihoods.batch, stage_step=0, step=STEP)
    assert_metrics_close(measured_metrics, metrics, rtol=1e-6, atol=1e-12)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), measured.generator, expected.generator
    )
    assert distance(measured.generator.params, likelihoods.params["generator"]) > 1e-3
    _, later = trainer.run(measured, likelihoods.batch, stage_step=1, step=STEP + 1)
    assert later["response/length_mean"] == measured_metrics["response/length_mean"]
    assert later["generator/loss"] < measured_metrics["generator/loss"], "the same pairs, one update later"


def test_seqkd_teaches_a_likelihood_discriminator_the_same_answers(likelihoods):
    settings = dict(seqkd__train_discriminator=True)
    trainer, state = likelihoods.trainer("seqkd", **LIKELIHOOD, **settings)
    measured, metrics = trainer.run(state, likelihoods.batch, stage_step=0, step=0)
    twin = likelihoods.state(trainer.method)
    twin = twin.replace(generator=twin.discriminator)
    taught, alone = jax.jit(functools.partial(steps.seqkd_step, steps.PureParts(trainer.method)))(
        twin, likelihoods.batch
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), measured.discriminator, taught.generator
    )
    np.testing.assert_allclose(metrics["discriminator/nll"], alone["generator/loss"], rtol=1e-9)


@pytest.mark.parametrize(("stage", "settings"), CASES.values(), ids=CASES)
def test_the_trainer_s_step_is_the_whole_step(bigrams, stage, settings):
    """States, moments, counters and metrics, in float64: packing and the host in between change nothing."""
    trainer, state = bigrams.trainer(stage, **settings)
    options = {"train_generator": False} if "warmup__discriminator_only_steps" in settings else {}
    expected, metrics, samples = whole_step(bigrams, trainer.method, stage, **options)
    assert len(np.unique(samples.lengths)) > 3 and np.any(samples.ended) and not np.all(samples.ended)

    measured, measured_metrics = trainer.run(state, bigrams.batch, stage_step=STEP, step=STEP)
    assert_states_close(measured, expected, rtol=1e-9, atol=1e-12)
    assert_metrics_close(measured_metrics, metrics, rtol=1e-6, atol=1e-12)
    for network in bigrams.params:
        moved = distance(getattr(measured, network).params, bigrams.params[network]) > 1e-3
        assert moved == (network == "discriminator" or not options)


def test_a_mesh_of_eight_devices_changes_no_number(decoder):
    """The real decoder in float32: the trainer on data 2, fsdp 2, tensor 2 against the whole step on one device.

    AdamW's epsilon is raised: at 1e-8 it turns the rounding of a gradient near 0 into a full step.
    """
    settings = dict(gad__sft_coefficient=0.3, micro_batches__discriminator=2, optimizer__eps=1e-4)
    mesh = meshes.make_mesh(2, 2, 2)
    trainer, state = decoder.trainer("gad", mesh, **settings)
    expected, metrics, samples = whole_step(decoder, trainer.method, "gad")
    assert len(np.unique(samples.lengths)) > 3

    embedding = state.generator.params["embed"]["embedding"]
    assert len(embedding.sharding.device_set) == 8 and embedding.addressable_shards[0].data.size == embedding.size // 4
    measured, measured_metrics = trainer.run(state, decoder.batch, stage_step=0, step=STEP)
    assert measured.generator.params["embed"]["embedding"].sharding == embedding.sharding
    assert measured_metrics["tokens"] == samples.lengths.sum(), "the same samples"
    assert_metrics_close(measured_metrics, metrics, rtol=1e-4, atol=1e-6)
    rate = trainer.section.generator_learning_rate
    assert_states_close(measured, expected, rtol=1e-4, atol=3e-3 * rate)
    for network in decoder.params:
        assert distance(getattr(measured, network).params, decoder.params[network]) > 0.3 * rate


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_kl_of_the_first_step_is_exactly_zero(decoder, micro_batches):
    """float32: the reference is the generator, on the same rows, through the same operations."""
    method = decoder.method(generator_micro_batches=micro_batches)
    state, reference = decoder.state(method), jax.tree.map(jnp.array, decoder.params["generator"])
    rows, sampled = decoder.policy_rows(method)
    update = jax.jit(functools.partial(update_against, method))
    _, metrics = update(state.generator, reference, rows, sampled, decoder.advantages)
    assert metrics["generator/kl"] == 0.0
    assert metrics["generator/grad_norm"] > 0


@pytest.mark.parametrize("stage", ["warmup", "gad"])
@pytest.mark.parametrize("frozen", ["generator", "discriminator"])
def test_a_frozen_network_stays_and_the_other_one_learns(bigrams, stage, frozen):
    """The ablations' flags. A frozen discriminator still gives the rewards, and its metrics are still logged."""
    trainer, state = bigrams.trainer(stage, **{f"{stage}__train_{frozen}": False})
    state, metrics = trainer.run(state, bigrams.batch, stage_step=0, step=STEP)
    learns = {"generator": "discriminator", "discriminator": "generator"}[frozen]
    assert distance(getattr(state, frozen).params, bigrams.params[frozen]) == 0
    assert distance(getattr(state, learns).params, bigrams.params[learns]) > 1e-3
    assert (getattr(state, frozen).step, getattr(state, learns).step) == (0, 1)
    assert {"discriminator/accuracy", "reward/mean", "response/length_mean"} <= set(metrics)
    assert (f"{frozen}/grad_norm" in metrics, f"{learns}/grad_norm" in metrics) == (False, True)


def test_where_the_discriminator_does_not_learn_no_step_is_its_alone(bigrams):
    """Else the first steps of that ablation would train nothing."""
    trainer, state = bigrams.trainer(
        "warmup", warmup__train_discriminator=False, warmup__discriminator_only_steps=STEP + 1
    )
    state, _ = trainer.run(state, bigrams.batch, stage_step=0, step=STEP)
    assert distance(state.generator.params, bigrams.params["generator"]) > 1e-3


@pytest.fixture
def compilations():
    """Durations of what the backend compiled, as they come."""
    seen: list[float] = []

    def listen(name: str, seconds: float, **_: object) -> None:
        if name.endswith("backend_compile_duration"):
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("stage", ["warmup", "gad"])
def test_nothing_compiles_after_the_first_pass_over_the_shapes(bigrams, stage, compilations):
    """Three steps whose samples differ in length, and the same three again."""
    trainer, _ = bigrams.trainer(stage, warmup__discriminator_only_steps=1)
    counts = []
    for _ in range(2):
        _, state = bigrams.trainer(stage)
        tokens = []
        for step in range(3):
            state, metrics = trainer.run(state, bigrams.batch, stage_step=step, step=step)
            tokens.append(metrics["tokens"])
        assert len(set(tokens)) > 1
        counts.append(len(compilations))
    assert counts[0] == counts[1] > 0
