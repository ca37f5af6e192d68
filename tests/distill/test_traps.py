"""The traps that other implementations fell into, one after another (`docs/algorithm.md`, section 5)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.data.packing import RowShape, one_per_row
from gadjax.distill import steps
from gadjax.distill.discriminator import discriminator_metrics, update_discriminator
from gadjax.distill.forward import response_logprobs, sequence_scores
from gadjax.distill.losses import group_advantages
from gadjax.distill.rows import PackedByHost, group_rows
from gadjax.rollout.sampler import Samples
from gadjax.trainer.stage_steps import response_metrics
from tests.distill.policy import update_against


def padded(sequences, width, seed=0):
    """[S, width] with random ids after the ends, and the lengths."""
    tokens = np.random.default_rng(seed).integers(0, 64, (len(sequences), width)).astype(np.int32)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, np.array([len(sequence) for sequence in sequences], np.int32)


def by_sequence(values, rows, width):
    """[S, width] from the response slots [R, K] of any layout; 0 after the ends."""
    out = np.zeros((rows.last.shape[-1], width), np.float32)
    mask = np.array(rows.mask)
    out[np.array(rows.owner)[mask], np.array(rows.step)[mask]] = np.array(values)[mask]
    return out


# 1. Same text, same score.


def test_trap_1_same_text_same_score(decoder):
    """One text in every place that the discriminator reads it from, beside others and alone without any padding."""
    model, params = decoder.networks["discriminator"], decoder.params["discriminator"]
    score = functools.partial(jax.jit(functools.partial(sequence_scores, model)), params)
    prompts, responses = decoder.sequences()
    prompt, text = prompts[3 * 2], responses[3 * 2]  # the third prompt's first sample

    tokens = np.concatenate([prompt, text])[None]
    positions = np.arange(tokens.shape[1])[None]
    alone = float(jax.jit(model.scores)(params, tokens, positions, np.ones_like(tokens))[0, -1])

    places = [0, 5, 11]
    found = {}
    for place in places:  # packed by the host: another row, another place in it, other neighbours
        placed_prompts, placed = list(prompts), list(responses)
        placed_prompts[place], placed[place] = prompt, text
        rows = decoder.pack(placed_prompts, placed)
        found[f"packed {place}"] = score(rows)[place]
        found[f"own row {place}"] = score(one_per_row(*padded(placed_prompts, 9), *padded(placed, 7)))[place]
    wide = one_per_row(*padded([prompt, prompts[0]], 30, seed=5), *padded([text, responses[0]], 20, seed=5))
    found["wide"] = score(wide)[0]
    for name, value in found.items():
        np.testing.assert_allclose(value, alone, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(np.unique([rows.last[place] % rows.tokens.shape[1] for place in places])) > 1

    shorter = one_per_row(*padded([prompt, prompts[0]], 30, seed=5), *padded([text[:-1], responses[0]], 20, seed=5))
    assert abs(score(shorter)[0] - alone) > 1e-2, "the score is read at the last token: without it, another score"


def test_trap_1_a_student_that_writes_the_teacher_s_text_cannot_be_told_apart(decoder):
    """Teachers' texts that the student has just written, some ended by an EOS and some cut: margin 0, loss log 2."""
    method = decoder.method("warmup")
    state = decoder.state(method)
    samples = jax.jit(functools.partial(steps.sample, method))(state.generator.params, decoder.batch, jax.random.key(1))
    assert np.any(samples.ended[:, 0]) and not np.all(samples.ended[:, 0])
    decoder.batch |= {"teacher": np.array(samples.tokens[:, 0]), "teacher_length": np.array(samples.lengths[:, 0])}
    decoder.samples = jax.tree.map(lambda leaf: np.repeat(leaf[:, :1], 3, axis=1), samples)
    update = jax.jit(functools.partial(update_discriminator, method, train=False))
    tokens, lengths = decoder.samples.tokens, decoder.samples.lengths
    packed = group_rows(method, decoder.batch, tokens, lengths, PackedByHost(RowShape(row_length=40)))
    own_rows, weight = decoder.groups(method)
    for groups, weights in ((own_rows, weight), (packed, weight)):
        _, judged, metrics = update(state.discriminator, groups, weights)
        scores = judged.scores
        np.testing.assert_allclose(scores, np.repeat(scores[:, :1], 4, axis=1), rtol=1e-5, atol=1e-6)
        assert np.ptp(scores[:, 0]) > 1e-2, "the texts differ from prompt to prompt"
        np.testing.assert_allclose(metrics["discriminator/loss"], np.log(2), rtol=1e-5)


# 2. Packing and padding change nothing.


def test_trap_2_packing_and_padding_change_no_logprob_score_or_gradient(decoder):
    """Against a loop over the sequences, each by itself, without padding, through the dense logits.

    The gradients are of random weights on every log-prob, entropy and score, for all parameters of both networks.
    """
    generator, discriminator = decoder.networks["generator"], decoder.networks["discriminator"]
    temperature, width = 0.8, 7
    splits = [(9, 3), (1, 7), (5, 7), (7, 1), (11, 1), (4, 4)]  # of two lengths in all: two compilations of the loop
    rng = np.random.default_rng(8)
    ids = lambda length: rng.integers(0, 64, length).astype(np.int32)  # noqa: E731
    prompts, responses = [ids(p) for p, _ in splits], [ids(r) for _, r in splits]
    on_logprobs, on_entropies = rng.normal(size=(2, len(splits), width)).astype(np.float32)
    on_scores = rng.normal(size=len(splits)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def alone(params, tokens, prompt_length, on_logprobs, on_entropies, on_score):
        positions, segments = jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens)
        logits = generator.logits(params["generator"], tokens, positions, segments)[0] / temperature
        everything = jax.nn.log_softmax(logits)
        entropies = -jnp.sum(jnp.exp(everything) * everything, axis=-1)
        slots = jnp.minimum(prompt_length - 1 + jnp.arange(width), tokens.shape[1] - 2)  # those past the end weigh 0
        logprobs = everything[slots, tokens[0, slots + 1]]
        score = discriminator.scores(params["discriminator"], tokens, positions, segments)[0, -1]
        loss = jnp.sum(on_logprobs * logprobs + on_entropies * entropies[slots]) + on_score * score
        return loss, (logprobs, entropies[slots], score)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def laid_out(params, rows):
        logprobs, entropies = response_logprobs(
            generator, params["generator"], rows, temperature=temperature, chunk=4, entropy_gradient=True
        )
        scores = sequence_scores(discriminator, params["discriminator"], rows)
        weight = lambda values: values.at[rows.owner, rows.step].get(mode="fill", fill_value=0.0)  # noqa: E731
        loss = jnp.sum(weight(on_logprobs) * logprobs + weight(on_entropies) * entropies) + jnp.sum(on_scores * scores)
        return loss, (logprobs, entropies, scores)

    on_logprobs, on_entropies, on_scores = map(jnp.array, (on_logprobs, on_entropies, on_scores))
    expected, gradient = ([], [], []), None
    for i, (prompt_length, length) in enumerate(splits):
        held = np.arange(width) < length
        tokens = np.concatenate([prompts[i], responses[i]])[None]
        weights = on_logprobs[i] * held, on_entropies[i] * held, on_scores[i]
        (_, values), part = alone(decoder.params, tokens, prompt_length, *weights)
        gradient = part if gradient is None else jax.tree.map(np.add, gradient, part)
        expected[0].append(values[0] * held), expected[1].append(values[1] * held), expected[2].append(values[2])

    layouts = {
        "packed": decoder.pack(prompts, responses),
        "own rows": one_per_row(*padded(prompts, 13), *padded(responses, width + 2)),
    }
    assert layouts["packed"].tokens.shape[0] < len(splits)
    for name, rows in layouts.items():
        (_, (logprobs, entropies, scores)), measured = laid_out(decoder.params, rows)
        for values, wanted in ((logprobs, expected[0]), (entropies, expected[1])):
            np.testing.assert_allclose(by_sequence(values, rows, width), np.stack(wanted), atol=1e-5, err_msg=name)
        np.testing.assert_allclose(scores, np.stack(expected[2]), atol=1e-5, err_msg=name)
        for (path, leaf), wanted in zip(jax.tree.leaves_with_path(measured), jax.tree.leaves(gradient), strict=True):
            scale = np.max(np.abs(wanted))
            where = f"{name} {jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(leaf, wanted, atol=1e-5 * scale + 1e-6, err_msg=where)
            assert scale > 1e-3 or "['k']['bias']" in where or "score" in where, f"{where} has no gradient"


# 3. The reward is the discriminator's before its update.


def test_trap_3_the_reward_is_of_the_discriminator_before_its_update(bigrams):
    """The whole step, against its parts in the right order and in the wrong one."""
    method = bigrams.method()
    state, key = bigrams.state(method), jax.random.key(2)
    step = jax.jit(functools.partial(steps.gad_step, steps.PureParts(method)))
    measured, metrics, bigrams.samples = step(state, bigrams.batch, key)

    groups, weight = bigrams.groups(method)
    score = jax.jit(functools.partial(update_discriminator, method, train=False))
    _, before, _ = score(state.discriminator, groups, weight)
    _, after, _ = score(measured.discriminator, groups, weight)
    rows, sampled = jax.jit(steps.PureParts(method).policy_rows)(bigrams.batch, bigrams.samples)
    update = jax.jit(functools.partial(update_against, method))
    embeddings = [
        update(state.generator, state.reference, rows, sampled, group_advantages(rewards))[0].params["embed"]
        for rewards in (before.scores[:, 1:], after.scores[:, 1:])
    ]
    np.testing.assert_allclose(measured.generator.params["embed"], embeddings[0], atol=1e-10)
    assert np.max(np.abs(embeddings[1] - embeddings[0])) > 1e-6  # the wrong order is off by ten thousand tolerances
    np.testing.assert_allclose(metrics["reward/mean"], np.mean(before.scores[:, 1:]), rtol=1e-10)
    assert abs(np.mean(after.scores[:, 1:]) - np.mean(before.scores[:, 1:])) > 1e-4


# 4. All N samples of a group reach the policy update.


def test_trap_4_every_sample_of_a_group_moves_the_policy(bigrams, keep_gradient):
    """On the policy and without a KL the gradient is linear in the advantages: each one's own share must not be 0."""
    method = bigrams.method(generator_optimizer=keep_gradient, kl_coefficient=0.0, generator_micro_batches=2)
    state, (rows, sampled) = bigrams.state(method), bigrams.policy_rows(method)
    assert np.array(rows.mask).sum() == bigrams.samples.lengths.sum()
    update = jax.jit(functools.partial(update_against, method))

    def gradient(advantages):
        new, _ = update(state.generator, state.reference, rows, sampled, advantages)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(new.opt_state)])

    shares = []
    for b, n in np.ndindex(bigrams.advantages.shape):
        alone = np.zeros_like(bigrams.advantages)
        alone[b, n] = bigrams.advantages[b, n]
        shares.append(gradient(alone))
    sizes = np.linalg.norm(shares, axis=1)
    assert np.all(sizes > 1e-3 * sizes.max()), sizes
    np.testing.assert_allclose(gradient(bigrams.advantages), np.sum(shares, axis=0), atol=1e-12)


# 5. The sampler's log-probs are the trainer's.


def test_trap_5_the_sampler_s_logprobs_are_the_trainer_s(decoder):
    """Temperature 0.8, prompts of 1 to 9 tokens, answers that end and answers that are cut; float32."""
    method = decoder.method(num_samples=6)
    params = decoder.params["generator"]
    samples = jax.device_get(jax.jit(functools.partial(steps.sample, method))(params, decoder.batch, jax.random.key(0)))
    assert np.any(samples.ended) and not np.all(samples.ended) and len(np.unique(samples.lengths)) > 3
    lengths, tokens = samples.lengths.reshape(-1), samples.tokens.reshape(len(samples.lengths) * 6, -1)
    ends = np.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    np.testing.assert_array_equal(np.isin(ends, method.sampling.eos_ids), samples.ended.reshape(-1))

    trainer_s = jax.jit(functools.partial(response_logprobs, method.generator, chunk=4))
    logprobs_of = lambda rows, temperature: trainer_s(params, rows, temperature=temperature)[0]  # noqa: E731
    prompts = [decoder.batch["prompt"][i // 6, : decoder.batch["prompt_length"][i // 6]] for i in range(len(tokens))]
    responses = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    sampled = samples.logprobs.reshape(tokens.shape)
    for rows in (decoder.pack(prompts, responses), one_per_row(*padded(prompts, 9), *padded(responses, 7))):
        np.testing.assert_allclose(
            by_sequence(logprobs_of(rows, 0.8), rows, tokens.shape[1]), sampled, atol=1e-4, rtol=0
        )
        unscaled = by_sequence(logprobs_of(rows, 1.0), rows, tokens.shape[1])
        assert np.max(np.abs(unscaled - sampled)) > 1e-2, "the temperature belongs to the distribution"


# 6. The discriminator's accuracy is of fresh samples before the update.


def test_trap_6_metrics_are_of_fresh_groups_before_the_update(bigrams):
    """The second step of a run with replay: half of the update's weight is on groups of the first."""
    settings = dict(discriminator__replay_size=12, discriminator__replay_share=0.5, discriminator__updates_per_step=2)
    trainer, state = bigrams.trainer("warmup", warmup__train_generator=False, **settings)
    other = bigrams.batch | {"teacher": bigrams.batch["teacher"][::-1].copy()}
    state, _ = trainer.run(state, other, stage_step=0, step=0)
    assert trainer.replay.added == 4
    before = jax.tree.map(np.array, state.discriminator.params)
    key = jax.random.fold_in(jax.random.key(0), 1)
    bigrams.samples = jax.device_get(trainer.programs.sample(state.generator.params, bigrams.batch, key))
    state, metrics = trainer.run(state, bigrams.batch, stage_step=1, step=1)

    method = bigrams.method()
    groups, _ = bigrams.groups(method)
    groups = jax.tree.map(lambda leaf: leaf[0], groups)
    score = jax.jit(lambda params: sequence_scores(method.discriminator, params, groups).reshape(4, -1))
    expected = discriminator_metrics(method, score(before))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    after = discriminator_metrics(method, score(state.discriminator.params))
    assert after["discriminator/margin"] > expected["discriminator/margin"] + 1e-3


def test_trap_6_replayed_groups_do_train_the_discriminator(bigrams):
    """The other half of the matter: with replay, the second update is another one."""
    embeddings = []
    for size in (0, 12):
        trainer, state = bigrams.trainer("warmup", warmup__train_generator=False, discriminator__replay_size=size)
        for step in range(2):
            state, _ = trainer.run(state, bigrams.batch, stage_step=step, step=step)
        embeddings.append(np.array(state.discriminator.params["embed"]))
    assert np.max(np.abs(embeddings[1] - embeddings[0])) > 1e-6  # the wrong order is off by ten thousand tolerances


def test_trap_6_a_frozen_discriminator_s_metrics_hold_no_replayed_groups(bigrams):
    """A ring that warmup filled changes nothing in a stage whose discriminator does not learn."""
    found = []
    for size in (0, 12):
        settings = dict(discriminator__replay_size=size, gad__train_discriminator=False)
        warmup, state = bigrams.trainer("warmup", warmup__train_generator=False, **settings)
        other = bigrams.batch | {"teacher": bigrams.batch["teacher"][::-1].copy()}
        warmup.run(state, other, stage_step=0, step=0)
        assert warmup.replay.added == (4 if size else 0)
        gad, state = bigrams.trainer("gad", **settings)
        gad.replay = warmup.replay
        _, metrics = gad.run(state, bigrams.batch, stage_step=0, step=1)
        found.append({name: value for name, value in metrics.items() if not name.startswith(("seconds/", "speed/"))})
    assert found[0] == found[1]


# 7. Lengths are logged.


def test_trap_7_lengths_of_responses():
    lengths = np.array([[1, 2, 3, 4], [5, 6, 7, 20]], np.int32)
    metrics = response_metrics(Samples(np.zeros((2, 4, 20)), lengths, np.zeros((2, 4, 20)), lengths < 20))
    assert metrics == {
        "response/length_mean": 6.0,
        "response/length_p95": pytest.approx(7 + 0.65 * 13),  # between the 7th and 8th of 8
        "response/truncated": 1 / 8,
        "tokens": 48,
    }


@pytest.mark.parametrize("stage", ["warmup", "gad"])
def test_trap_7_every_step_that_samples_logs_lengths(bigrams, stage):
    trainer, state = bigrams.trainer(stage, **{f"{stage}__train_generator": False})
    key = jax.random.fold_in(jax.random.key(0), 3)
    samples = jax.device_get(trainer.programs.sample(state.generator.params, bigrams.batch, key))
    _, metrics = trainer.run(state, bigrams.batch, stage_step=0, step=3)
    expected = response_metrics(samples)
    assert {name: metrics[name] for name in expected} == expected
    assert 0 < expected["response/truncated"] < 1
