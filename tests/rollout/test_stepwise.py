"""A rollout in several calls draws what the rollout in one call does."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from gadjax.models import layouts
from gadjax.parallel import mesh as meshes
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling
from gadjax.rollout.stepwise import Stepwise, has_ended

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.quick]

SAMPLING = Sampling(6, (3, 11), pad_id=0, temperature=0.7)


@pytest.fixture(scope="module")
def one():
    return meshes.make_mesh(1, 1, 1, jax.devices()[:1])


def runs(model, params, mesh, prompts, clock, samples=2, slots=3):
    """What was seen after each call, the prompts in one queue."""
    tokens = np.zeros((len(prompts), 16), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths, numbers = np.array([len(prompt) for prompt in prompts], np.int32), np.arange(len(prompts), dtype=np.uint32)
    queue = meshes.place((tokens, lengths, numbers), meshes.rows(mesh))
    steps = Stepwise(model, mesh).samples(
        params, queue, jax.random.key(14), SAMPLING, slots, samples, seconds=1.0, clock=clock
    )
    return list(steps)


@pytest.mark.parametrize("pace", ["one step a call", "ever more steps"])
def test_calls_do_not_matter(model, params, prompts, one, pace):
    """Also where a call ends between two admissions, or between two tokens of a sample."""
    clock = itertools.count(step=10.0 if pace == "one step a call" else 0.0)
    seen = runs(model, params, one, prompts, lambda: next(clock))
    expected = Engine(model, one, batch_size=8).generate_groups(params, prompts, SAMPLING, 2, seed=14)
    assert has_ended(seen[-1]).all() and not any(has_ended(one).all() for one in seen[:-1])
    for row, group in enumerate(expected):
        for place, completion in enumerate(group):
            end = seen[-1].lengths[row, place]
            assert seen[-1].tokens[row, place, :end].tolist() == completion.tokens.tolist()
            np.testing.assert_allclose(seen[-1].logprobs[row, place, :end], completion.logprobs, atol=1e-5)
            assert seen[-1].ended[row, place] == completion.ended
    totals = [int(one.lengths.sum()) for one in seen]
    if pace == "one step a call":  # three slots: at most three tokens
        assert all(0 < after - before <= 3 for before, after in itertools.pairwise([0, *totals]))
    else:
        assert len(seen) == int(np.ceil(np.log2(sum(np.diff([0, *totals])) / 3 + 1)))  # 1 + 2 + 4 + ... steps


def test_prompts_of_no_length_are_not_waited_for(model, params, prompts, one):
    seen = runs(model, params, one, [*prompts[:2], np.array([], np.int32)], lambda: 0.0)
    assert has_ended(seen[-1])[:2].all() and not seen[-1].lengths[2].any()


def test_spread_over_devices(model, params, prompts, one):
    mesh = meshes.make_mesh(data=1, fsdp=4, tensor=2)
    spread = Engine(dataclasses.replace(model, mesh=mesh), mesh, batch_size=3)
    sharded = jax.device_put(params, layouts.param_shardings(model, mesh))
    found = dict(spread.groups_as_they_end(sharded, prompts, SAMPLING, 3, seed=14))
    expected = Engine(model, one, batch_size=8).generate_groups(params, prompts, SAMPLING, 3, seed=14)
    assert sorted(found) == list(range(len(prompts)))
    for place, group in enumerate(expected):
        assert [a.tokens.tolist() for a in found[place]] == [a.tokens.tolist() for a in group]
