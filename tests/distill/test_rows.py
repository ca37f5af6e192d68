"""Rows packed by the host hold every sequence once, whole and in the order that the updates expect."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest

from gadjax.config import default_config
from gadjax.data.packing import Packed, RowShape
from gadjax.distill.method import Method
from gadjax.distill.rows import PackedByHost, policy_rows, teacher_rows
from gadjax.distill.steps import PureParts
from gadjax.rollout.sampler import Samples, Sampling
from gadjax.segments import root
from gadjax.trainer.replay import pack_groups

B, N, P, T = 4, 3, 6, 5
SHAPE = RowShape(row_length=17, row_multiple=2)
PACKED = PackedByHost(SHAPE)
SHARED = PackedByHost(dataclasses.replace(SHAPE, share=True))
METHOD = Method.from_config(
    default_config(), generator=None, sampling=Sampling(T, (1,)), generator_optimizer=optax.identity(), num_samples=N
)


def batch(seed: int = 0, count: int = B) -> dict[str, np.ndarray]:
    """A ragged batch with its samples; the padding holds ids of its own."""
    rng = np.random.default_rng(seed)
    ids = lambda *shape: rng.integers(2, 1000, shape).astype(np.int32)  # noqa: E731
    lengths = lambda most, *shape: rng.integers(1, most + 1, shape).astype(np.int32)  # noqa: E731
    return {
        "prompt": ids(count, P),
        "prompt_length": lengths(P, count),
        "teacher": ids(count, T),
        "teacher_length": lengths(T, count),
        "tokens": ids(count, N, T),
        "lengths": lengths(T, count, N),
    }


def samples_of(data: dict[str, np.ndarray]) -> Samples:
    logprobs = -np.random.default_rng(9).random(data["tokens"].shape, np.float32)
    return Samples(data["tokens"], data["lengths"], logprobs, data["lengths"] < T)


def sequences(rows: Packed) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of every sequence in its order, read back as the networks read them."""
    found = {}
    flat = [leaf.reshape(-1, *leaf.shape[-2:]) for leaf in (rows.tokens, rows.positions, rows.segments)]
    slots = [leaf.reshape(-1, *leaf.shape[-2:]) for leaf in (rows.source, rows.target, rows.owner, rows.step)]
    last = rows.last.reshape(-1, rows.last.shape[-1])
    micro_batches = zip(*flat, *slots, last, strict=True)
    for number, (tokens, positions, segments, source, target, owner, step, ends) in enumerate(micro_batches):
        minibatch = number // rows.last.shape[-2]
        for sequence in np.flatnonzero(ends >= 0):
            end = ends[sequence]
            row, column = divmod(int(end), tokens.shape[1])
            own = segments[row, column]
            mine = (segments[row] == own) | (segments[row] == root(own))
            assert own != 0
            np.testing.assert_array_equal(positions[row, mine], np.arange(mine.sum()))
            held = owner == sequence
            assert np.all(np.nonzero(held)[0] == row), "the slots of a sequence are in its row"
            order = np.argsort(step[held])
            np.testing.assert_array_equal(step[held][order], np.arange(held.sum()))
            np.testing.assert_array_equal(tokens[row, mine][-held.sum() :], target[held][order])
            np.testing.assert_array_equal(source[held][order], np.flatnonzero(mine)[-held.sum() - 1 : -1])
            text = tokens[row, mine].tolist()
            assert (minibatch, sequence) not in found
            found[minibatch, sequence] = text[: len(text) - held.sum()], target[held][order].tolist()
    return [found[place] for place in sorted(found)]


def cut(tokens: np.ndarray, length: int) -> list[int]:
    return tokens[:length].tolist()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_teacher_rows(parts):
    data, method = batch(), dataclasses.replace(METHOD, generator_micro_batches=parts)
    rows = teacher_rows(method, data, PACKED)
    assert rows.tokens.shape[::2] == (parts, SHAPE.row_length) and rows.tokens.shape[1] % SHAPE.row_multiple == 0
    assert sequences(rows) == [
        (cut(data["prompt"][b], data["prompt_length"][b]), cut(data["teacher"][b], data["teacher_length"][b]))
        for b in range(B)
    ]


@pytest.mark.parametrize("lay_out", [PACKED, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize(("minibatches", "parts"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_policy_rows_hold_all_samples_in_order(minibatches, parts, lay_out):
    """B * N sequences, each beside its own log-probs."""
    data = batch()
    samples = samples_of(data)
    method = dataclasses.replace(METHOD, ppo_minibatches=minibatches, generator_micro_batches=parts)
    rows, sampled = policy_rows(method, data, samples, lay_out)
    assert rows.tokens.shape[:2] == (minibatches, parts)
    found = sequences(rows)
    assert len(found) == B * N
    assert found == [
        (cut(data["prompt"][b], data["prompt_length"][b]), cut(data["tokens"][b, n], data["lengths"][b, n]))
        for b in range(B)
        for n in range(N)
    ]
    np.testing.assert_array_equal(sampled.reshape(B, N, T), samples.logprobs)


@pytest.mark.parametrize("lay_out", [PACKED, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_group_rows_hold_the_teacher_and_then_its_samples(parts, lay_out):
    data, method = batch(), dataclasses.replace(METHOD, discriminator_micro_batches=parts)
    rows, weight = pack_groups(method, data, None, 0.5, lay_out)
    expected = []
    for b in range(B):
        prompt = cut(data["prompt"][b], data["prompt_length"][b])
        expected.append((prompt, cut(data["teacher"][b], data["teacher_length"][b])))
        expected += [(prompt, cut(data["tokens"][b, n], data["lengths"][b, n])) for n in range(N)]
    assert sequences(rows) == expected
    np.testing.assert_allclose(weight, np.full(B, 1 / B))


def test_replayed_groups_follow_the_fresh_ones_and_weigh_their_share():
    fresh, past = batch(), batch(seed=5, count=2)
    method = dataclasses.replace(METHOD, discriminator_micro_batches=2)
    rows, weight = pack_groups(method, fresh, past, 0.25, PACKED)
    alone = [pack_groups(METHOD, part, None, 0.0, PACKED)[0] for part in (fresh, past)]
    assert sequences(rows) == sequences(alone[0]) + sequences(alone[1])
    np.testing.assert_allclose(weight, [0.75 / 4] * 4 + [0.25 / 2] * 2, rtol=1e-6)


def test_the_device_s_rows_hold_the_same_sequences_in_the_same_order():
    """Teacher, policy and group rows, with one sequence a row."""
    data = batch()
    samples = samples_of(data)
    method = dataclasses.replace(METHOD, ppo_minibatches=2, generator_micro_batches=2, discriminator_micro_batches=2)
    pure = PureParts(method)
    on_host = policy_rows(method, data, samples, PACKED)
    on_device = jax.device_get(pure.policy_rows(data, samples))
    np.testing.assert_array_equal(on_device[1], on_host[1])
    pairs = [(on_device[0], on_host[0])]
    pairs.append((pure.teacher_rows(data), teacher_rows(method, data, PACKED)))
    grouped = (
        jax.device_get(pure.group_rows(data, samples)),
        pack_groups(method, data, None, 0, PACKED),
    )
    np.testing.assert_allclose(grouped[0][1], grouped[1][1])
    pairs.append((grouped[0][0], grouped[1][0]))
    for device, host in pairs:
        assert sequences_in_place(jax.device_get(device)) == sequences(host)


def sequences_in_place(rows: Packed) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of one-sequence rows, whose prompts and responses have a gap between them."""
    out = []
    flat = [leaf.reshape(-1, *leaf.shape[-2:]) for leaf in (rows.tokens, rows.segments, rows.target, rows.owner)]
    for tokens, segments, target, owner, last in zip(*flat, rows.last.reshape(-1, rows.last.shape[-1]), strict=True):
        for sequence in np.flatnonzero(last >= 0):
            row = last[sequence] // tokens.shape[1]
            text = tokens[row][segments[row] != 0].tolist()
            response = target[owner == sequence].tolist()
            assert text[len(text) - len(response) :] == response
            out.append((text[: len(text) - len(response)], response))
    return out


@pytest.mark.parametrize(("devices", "median"), [*((n, m) for n in (1, 4, 16) for m in (150, 300, 600)), (64, 600)])
def test_padding_of_an_update(devices, median):
    """At most a tenth of the tokens of eight updates is padding: 256 prompts of a long-tailed mix, 3584 to a row.

    Lengths are log-normal, as those of chats are: prompts around 100 tokens, responses around the median, cut at 1536.
    Of 64 devices, shorter ones give each but three to five rows, of which the last is half empty on average.
    """
    count, samples, at_once = 256, 8, 9 * devices
    # As `gadjax.setup.blueprint` chooses them.
    parts = lambda each: next(n for n in range(1, 257) if 256 % n == 0 and 256 // n * each <= at_once)  # noqa: E731
    most = {"generator_micro_batches": parts(samples), "discriminator_micro_batches": parts(1 + samples)}
    method = dataclasses.replace(METHOD, num_samples=samples, **most)
    lay_out = PackedByHost(RowShape(3584, devices, adaptive=True))
    padding = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        prompt = np.clip(rng.lognormal(np.log(100), 1.0, count), 8, 2048).astype(np.int32)
        answers = np.clip(rng.lognormal(np.log(median), 0.7, (count, 1 + samples)), 1, 1536).astype(np.int32)
        data = {
            "prompt": np.ones((count, 2048), np.int32),
            "prompt_length": prompt,
            "teacher": np.ones((count, 1536), np.int32),
            "teacher_length": answers[:, 0],
            "tokens": np.ones((count, samples, 1536), np.int32),
            "lengths": answers[:, 1:],
        }
        groups, _ = pack_groups(method, data, None, 0.0, lay_out)
        policy, _ = policy_rows(method, data, samples_of(data), lay_out)
        for rows, limit in zip((policy, groups), most.values(), strict=True):
            assert rows.tokens.shape[-2] <= at_once and rows.tokens.shape[-3] <= limit
            padding.append(np.mean(rows.segments == 0))
    assert np.mean(padding[::2]) <= 0.1 and np.mean(padding[1::2]) <= 0.1
