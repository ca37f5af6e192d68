"""Answers to many prompts: in order, and the same however they are batched."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gadjax.parallel import mesh as layout
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile")

SAMPLING = Sampling(6, (3, 11), pad_id=0, temperature=0.7)


@pytest.fixture(scope="module")
def one():
    return layout.make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def answers(model, params, prompts, one, quick_compile):
    return Engine(model, one, batch_size=8).generate(params, prompts, SAMPLING, seed=14)


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        assert a.ended == b.ended


def test_answers_are_trimmed(answers):
    for answer in answers:
        assert 1 <= len(answer.tokens) == len(answer.logprobs) <= 6
        assert answer.ended == (answer.tokens[-1] in (3, 11))
        assert not np.isin(answer.tokens[:-1], (3, 11)).any()
    assert {answer.ended for answer in answers} == {True, False}


def test_batches_do_not_matter(model, params, prompts, one, answers):
    counts = []
    small = Engine(model, one, batch_size=3).generate(params, prompts, SAMPLING, seed=14, done=counts.append)
    assert_same(small, answers)
    assert counts == [3, 5]


def test_an_answer_belongs_to_its_prompt(model, params, prompts, one, answers):
    """Prompts of the same numbers keep their answers when others change."""
    changed = [*prompts[:4], prompts[0]]
    other = Engine(model, one, batch_size=8).generate(params, changed, SAMPLING, seed=14)
    assert_same(other[:4], answers[:4])


def test_seeds(model, params, prompts, one, answers):
    other = Engine(model, one, batch_size=8).generate(params, prompts, SAMPLING, seed=5)
    assert [a.tokens.tolist() for a in other] != [a.tokens.tolist() for a in answers]


def test_spread_over_devices(model, params, prompts, answers):
    mesh = layout.make_mesh(data=1, fsdp=4, tensor=2)
    engine = Engine(model, mesh, batch_size=5)
    assert engine.batch_size == 8
    sharded = jax.device_put(params, layout.param_shardings(model, mesh))
    assert_same(engine.generate(sharded, prompts, SAMPLING, seed=14), answers)


def test_no_prompts(model, params, one):
    assert Engine(model, one).generate(params, [], SAMPLING) == []
