"""Completions of many prompts come in order, and do not depend on the batches."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from gadjax.models import layouts
from gadjax.parallel import mesh as meshes
from gadjax.rollout import engine
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling

pytestmark = pytest.mark.usefixtures("quick_compile")

SAMPLING = Sampling(6, (3, 11), pad_id=0, temperature=0.7)


@pytest.fixture(scope="module")
def one():
    return meshes.make_mesh(1, 1, 1, jax.devices()[:1])


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


@pytest.mark.parametrize(("queue", "expected"), [(16, [5]), (1, [3, 5])])
def test_slots_and_calls_do_not_matter(model, params, prompts, one, answers, monkeypatch, queue, expected):
    monkeypatch.setattr(engine, "_QUEUE", queue)
    counts = []
    small = Engine(model, one, batch_size=3).generate(params, prompts, SAMPLING, seed=14, done=counts.append)
    assert_same(small, answers)
    assert counts == expected


def test_a_long_queue_is_one_program(model, params, one):
    """All calls share one program, also the last one, which is not full."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 23, rng.integers(9, 17)).astype(np.int32) for _ in range(75)]
    counts = []
    few = Engine(model, one, batch_size=2)
    found = few.generate(params, prompts, SAMPLING, seed=14, done=counts.append)
    assert counts == [32, 64, 75] and few.sample._cache_size() == 1
    assert_same(found, Engine(model, one, batch_size=75).generate(params, prompts, SAMPLING, seed=14))


@pytest.mark.parametrize("length", [0, 1, 8, 9, 33, 100, 1025, 2048])
def test_widths(length):
    width = engine.queue_width(length)
    assert length <= width <= max(length * 1.25, length + 8) and width % 8 == 0


def test_an_answer_belongs_to_its_prompt(model, params, prompts, one, answers):
    """A prompt with the same number keeps its completion if other prompts change."""
    changed = [*prompts[:4], prompts[0]]
    other = Engine(model, one, batch_size=8).generate(params, changed, SAMPLING, seed=14)
    assert_same(other[:4], answers[:4])


def test_seeds(model, params, prompts, one, answers):
    other = Engine(model, one, batch_size=8).generate(params, prompts, SAMPLING, seed=5)
    assert [a.tokens.tolist() for a in other] != [a.tokens.tolist() for a in answers]


def test_spread_over_devices(model, params, prompts, answers):
    mesh = meshes.make_mesh(data=1, fsdp=4, tensor=2)
    spread = Engine(dataclasses.replace(model, mesh=mesh), mesh, batch_size=3)
    assert spread.batch_size == 4
    sharded = jax.device_put(params, layouts.param_shardings(model, mesh))
    assert_same(spread.generate(sharded, prompts, SAMPLING, seed=14), answers)


def test_no_prompts(model, params, one):
    assert Engine(model, one).generate(params, [], SAMPLING) == []


def test_the_first_samples_do_not_depend_on_their_number(model, params, prompts, one, answers, monkeypatch):
    """The first of them is the completion of `generate`, and no two are alike by rule."""
    counts = []
    four = Engine(model, one, batch_size=8).generate_groups(params, prompts, SAMPLING, 4, seed=14, done=counts.append)
    assert counts == [len(prompts)] and {len(group) for group in four} == {4}
    assert_same([group[0] for group in four], answers)
    assert any(a.tokens.tolist() != b.tokens.tolist() for a, b, *_ in four)
    monkeypatch.setattr(engine, "_QUEUE", 2)
    counts = []
    few = Engine(model, one, batch_size=3)
    three = few.generate_groups(params, prompts, SAMPLING, 3, seed=14, done=counts.append)
    assert counts == [2, 4, 5]  # six samples in a call
    for group, larger in zip(three, four, strict=True):
        assert_same(group, larger[:3])


def test_groups_spread_over_devices(model, params, prompts, one):
    mesh = meshes.make_mesh(data=1, fsdp=4, tensor=2)
    spread = Engine(dataclasses.replace(model, mesh=mesh), mesh, batch_size=3)
    sharded = jax.device_put(params, layouts.param_shardings(model, mesh))
    found = spread.generate_groups(sharded, prompts, SAMPLING, 3, seed=14)
    expected = Engine(model, one, batch_size=8).generate_groups(params, prompts, SAMPLING, 3, seed=14)
    for group, other in zip(found, expected, strict=True):
        assert_same(group, other)


def test_numbers_name_the_draws(model, params, prompts, one, answers):
    """A prompt with the same number gets the same completion at any position."""
    numbers = list(range(len(prompts)))[::-1]
    found = Engine(model, one, batch_size=8).generate(params, prompts[::-1], SAMPLING, seed=14, numbers=numbers)
    assert_same(found[::-1], answers)
    high = [2**32 - 1 - number for number in numbers]
    other = Engine(model, one, batch_size=8).generate(params, prompts[::-1], SAMPLING, seed=14, numbers=high)
    assert [a.tokens.tolist() for a in other] != [a.tokens.tolist() for a in found]


def test_groups_come_as_they_end(model, params, prompts, one, monkeypatch):
    """They are those of `generate_groups`, also where an earlier process has kept some, by the same programs."""
    monkeypatch.setattr(engine, "_QUEUE", 2)
    few = Engine(model, one, batch_size=3)
    expected = few.generate_groups(params, prompts, SAMPLING, 3, seed=14)
    found = list(few.groups_as_they_end(params, prompts, SAMPLING, 3, seed=14))
    assert sorted(place for place, _ in found) == [0, 1, 2, 3, 4]
    for place, group in found:
        assert_same(group, expected[place])
    kept = [place for place, _ in found[:2]]
    programs = few._stepwise._advance._cache_size()
    rest = list(few.groups_as_they_end(params, prompts, SAMPLING, 3, seed=14, kept=kept))
    assert sorted(place for place, _ in rest) == sorted({0, 1, 2, 3, 4} - set(kept))
    for place, group in rest:
        assert_same(group, expected[place])
    assert few._stepwise._advance._cache_size() == programs > 0
    assert list(few.groups_as_they_end(params, prompts, SAMPLING, 3, seed=14, kept=range(5))) == []


def test_a_completion_grows(model, params, prompts, one):
    """Every one of them begins the last one, which is that of `generate`."""
    alone = Engine(model, one, batch_size=1)
    for prompt in prompts:
        grown = list(alone.growing(params, prompt, SAMPLING, seed=14))
        (expected,) = alone.generate(params, [prompt], SAMPLING, seed=14)
        assert [whole for _, whole in grown] == [False] * (len(grown) - 1) + [True]
        assert_same([grown[-1][0]], [expected])
        for before, after in itertools.pairwise(grown):
            assert len(before[0].tokens) < len(after[0].tokens)
            assert before[0].tokens.tolist() == after[0].tokens[: len(before[0].tokens)].tolist()
