"""Held-out figures against the plainest way to compute them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.data.packing import pack
from gadjax.evaluation.text import distinct_n
from gadjax.models.model import grow_discriminator
from gadjax.rollout.engine import Engine
from gadjax.setup.initial import initial_generator
from gadjax.setup.prepare import prepare_run
from gadjax.trainer.heldout import HeldOut

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")


@pytest.fixture(scope="module")
def measured(tiny_config, one_device, quick_compile):
    setup = prepare_run(tiny_config({"batch_size": 4, "micro_batches.generator": 2, "evaluation.prompts": 7}))
    generator = initial_generator(setup)
    head = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(32, 1)), jnp.float32), "bias": jnp.ones(1)}
    discriminator = grow_discriminator(generator, head)
    heldout = HeldOut(setup)
    return setup, heldout, generator, discriminator, heldout.figures(generator, discriminator)


def one_sequence(prompt, response):
    tokens = np.concatenate([prompt, response])[None]
    return tokens, np.arange(tokens.size)[None], np.ones_like(tokens)


def test_prompts(measured):
    setup, heldout, *_ = measured
    assert len(heldout.prompts) == 7 < len(setup.heldout)


def test_negative_log_likelihood(measured):
    setup, heldout, generator, _, (figures, _) = measured
    total = count = 0
    for prompt, response in zip(heldout.prompts, heldout.teacher, strict=True):
        logits = setup.generator.logits(generator, *one_sequence(prompt, response))[0, len(prompt) - 1 : -1]
        logprobs = jax.nn.log_softmax(logits)[np.arange(len(response)), response]
        total, count = total - float(logprobs.sum()), count + len(response)
        assert response[-1] == setup.tokenizer.turn_end_id
    assert figures["nll"] == pytest.approx(total / count, rel=1e-5)


def test_discriminator_on_the_students_answers(measured):
    setup, heldout, generator, discriminator, (figures, answers) = measured
    student = heldout.programs.engine.generate(generator, heldout.prompts, setup.sampling(0.0))
    margins = []
    for prompt, teacher, own in zip(heldout.prompts, heldout.teacher, student, strict=True):
        ends = [
            float(setup.discriminator.scores(discriminator, *one_sequence(prompt, response))[0, -1])
            for response in (teacher, own.tokens)
        ]
        margins.append(ends[0] - ends[1])
    assert figures["discriminator_margin"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert figures["discriminator_accuracy"] == np.mean(np.array(margins) > 0)
    assert figures["length_mean"] == np.mean([len(own.tokens) for own in student])
    assert figures["truncated"] == np.mean([not own.ended for own in student])
    assert answers.student == [setup.tokenizer.decode(own.tokens) for own in student]
    assert answers.teacher[0] in ("four", "five", "six", "seven", "eight", "nine", "one zero", "one one")
    assert "<|im_start|>user" in answers.prompts[0]


def test_a_micro_batch_has_no_more_rows_than_one_of_training(measured, monkeypatch):
    """Of seven prompts, which no micro-batch divides: two for the likelihoods, four pairs for the scores."""
    _, heldout, generator, discriminator, (figures, _) = measured
    packed = []

    def remember(*args, **kwargs):
        rows = pack(*args, **kwargs)
        packed.append((rows.last.shape[1], kwargs["micro_batches"], rows.tokens.shape[0], rows.tokens.shape[1]))
        return rows

    monkeypatch.setattr("gadjax.trainer.heldout.pack", remember)
    again, _ = heldout.figures(generator, discriminator)
    (alone, most, parts, rows), (pairs, most_pairs, parts_pairs, rows_pairs) = packed
    assert (alone, most, pairs, most_pairs) == (7, 4, 14, 2)
    assert parts <= most and rows <= 2 and parts_pairs <= most_pairs and rows_pairs <= 8
    assert again == figures


def test_figures_of_samples(tiny_config):
    """Every prompt holds the word that is wanted, so coverage is the share of samples that say it."""
    setup = prepare_run(tiny_config({"evaluation.prompts": 7, "evaluation.coverage": "(user)"}))
    heldout, generator = HeldOut(setup), initial_generator(setup)
    found = heldout.sampled_figures(generator, lambda: pytest.fail("no test, no base"))
    samples = heldout._answer(generator, setup.config.rollout.temperature, setup.config.seed + 1)
    texts = [setup.tokenizer.decode(sample.tokens) for sample in samples]
    assert found == {
        "sampled_length_mean": np.mean([len(sample.tokens) for sample in samples]),
        "sampled_distinct_2": distinct_n(texts, 2),
        "coverage": np.mean(["user" in text.lower() for text in texts]),
    }


@pytest.mark.parametrize("measure", ["figures", "sampled_figures"])
def test_sampling_gets_parameters_in_the_compute_dtype(tiny_config, monkeypatch, measure):
    """Those of training are float32 always; the sampling loop would read twice the bytes, and cast at every token."""
    setup = prepare_run(tiny_config({"dtype": "bfloat16", "evaluation.prompts": 2}))
    seen = []

    def generate(self, params, *_, **__):
        seen.extend(leaf.dtype for leaf in jax.tree.leaves(params))
        raise StopIteration

    monkeypatch.setattr(Engine, "generate", generate)
    generator = initial_generator(setup)
    heldout = HeldOut(setup)
    with pytest.raises(StopIteration):
        getattr(heldout, measure)(generator, *([lambda: generator] if measure == "sampled_figures" else []))
    assert {str(dtype) for dtype in seen} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(generator)} == {"float32"}


def test_prompts_at_once_keep_to_the_memory_of_the_slots(tiny_config):
    """Four slots of two prompts: the samples of a rollout share their prompt's cache, those of a measurement cannot."""
    setup = prepare_run(tiny_config({"rollout.slots": 4}))
    cached = 4 * setup.config.data.max_response_length + 2 * setup.prompt_width
    assert HeldOut(setup).programs.engine.batch_size == cached // setup.sequence_length == 2
    assert HeldOut(prepare_run(tiny_config())).programs.engine.batch_size == 64


def test_without_a_discriminator(measured):
    _, heldout, generator, _, (figures, _) = measured
    bare, _ = heldout.figures(generator)
    assert bare == {name: value for name, value in figures.items() if not name.startswith("discriminator")}
