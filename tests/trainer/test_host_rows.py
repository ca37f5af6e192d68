"""Rows packed by the host hold every sequence once, whole and in the order that the updates expect."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest

from gadjax.data.packing import Packed
from gadjax.distill import rows as device_rows
from gadjax.distill.method import Method
from gadjax.rollout.sampler import Samples, Sampling
from gadjax.trainer import host_rows

B, N, P, T = 4, 3, 6, 5
SHAPE = host_rows.RowShape(row_length=17, row_multiple=2)
METHOD = Method(generator=None, sampling=Sampling(T, (1,)), generator_optimizer=optax.identity(), num_samples=N)


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
    """(prompt, response) of every sequence, read back as the networks read them, micro-batch after micro-batch."""
    out = []
    flat = [leaf.reshape(-1, *leaf.shape[-2:]) for leaf in (rows.tokens, rows.positions, rows.segments)]
    slots = [leaf.reshape(-1, *leaf.shape[-2:]) for leaf in (rows.source, rows.target, rows.owner, rows.step)]
    last = rows.last.reshape(-1, rows.last.shape[-1])
    for tokens, positions, segments, source, target, owner, step, ends in zip(*flat, *slots, last, strict=True):
        for sequence, end in enumerate(ends):
            row, column = divmod(int(end), tokens.shape[1])
            mine = segments[row] == segments[row, column]
            assert segments[row, column] != 0
            np.testing.assert_array_equal(np.flatnonzero(mine), np.arange(column + 1 - mine.sum(), column + 1))
            np.testing.assert_array_equal(positions[row, mine], np.arange(mine.sum()))
            held = owner == sequence
            assert np.all(np.nonzero(held)[0] == row), "the slots of a sequence are in its row"
            order = np.argsort(step[held])
            np.testing.assert_array_equal(step[held][order], np.arange(held.sum()))
            np.testing.assert_array_equal(tokens[row, source[held] + 1], target[held])
            np.testing.assert_array_equal(source[held][order], np.arange(column - held.sum(), column))
            text = tokens[row, mine].tolist()
            out.append((text[: len(text) - held.sum()], target[held][order].tolist()))
    return out


def cut(tokens: np.ndarray, length: int) -> list[int]:
    return tokens[:length].tolist()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_teacher_rows(parts):
    data, method = batch(), dataclasses.replace(METHOD, generator_micro_batches=parts)
    rows = host_rows.teacher_rows(method, data, SHAPE)
    assert rows.tokens.shape[::2] == (parts, SHAPE.row_length) and rows.tokens.shape[1] % SHAPE.row_multiple == 0
    assert sequences(rows) == [
        (cut(data["prompt"][b], data["prompt_length"][b]), cut(data["teacher"][b], data["teacher_length"][b]))
        for b in range(B)
    ]


@pytest.mark.parametrize(("minibatches", "parts"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_policy_rows_hold_all_samples_in_order(minibatches, parts):
    """B * N sequences, each beside its own log-probs."""
    data = batch()
    samples = samples_of(data)
    method = dataclasses.replace(METHOD, ppo_minibatches=minibatches, generator_micro_batches=parts)
    rows, sampled = host_rows.policy_rows(method, data, samples, SHAPE)
    assert rows.tokens.shape[:2] == sampled.shape[:2] == (minibatches, parts)
    found = sequences(rows)
    assert len(found) == B * N
    assert found == [
        (cut(data["prompt"][b], data["prompt_length"][b]), cut(data["tokens"][b, n], data["lengths"][b, n]))
        for b in range(B)
        for n in range(N)
    ]
    np.testing.assert_array_equal(sampled.reshape(B, N, T), samples.logprobs)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_group_rows_hold_the_teacher_and_then_its_samples(parts):
    data, method = batch(), dataclasses.replace(METHOD, discriminator_micro_batches=parts)
    rows, weight = host_rows.group_rows(method, data, None, 0.5, SHAPE)
    expected = []
    for b in range(B):
        prompt = cut(data["prompt"][b], data["prompt_length"][b])
        expected.append((prompt, cut(data["teacher"][b], data["teacher_length"][b])))
        expected += [(prompt, cut(data["tokens"][b, n], data["lengths"][b, n])) for n in range(N)]
    assert sequences(rows) == expected
    np.testing.assert_allclose(weight, np.full((parts, B // parts), 1 / B))


def test_replayed_groups_follow_the_fresh_ones_and_weigh_their_share():
    fresh, past = batch(), batch(seed=5, count=2)
    method = dataclasses.replace(METHOD, discriminator_micro_batches=2)
    rows, weight = host_rows.group_rows(method, fresh, past, 0.25, SHAPE)
    alone = [host_rows.group_rows(METHOD, part, None, 0.0, SHAPE)[0] for part in (fresh, past)]
    assert sequences(rows) == sequences(alone[0]) + sequences(alone[1])
    np.testing.assert_allclose(weight.reshape(-1), [0.75 / 4] * 4 + [0.25 / 2] * 2, rtol=1e-6)
    assert weight.shape == (2, 3)


def test_the_device_s_rows_hold_the_same_sequences_in_the_same_order():
    """Teacher, policy and group rows of `gadjax.distill.rows`, which whole steps use."""
    data = batch()
    samples = samples_of(data)
    method = dataclasses.replace(METHOD, ppo_minibatches=2, generator_micro_batches=2, discriminator_micro_batches=2)
    on_host = host_rows.policy_rows(method, data, samples, SHAPE)
    on_device = jax.device_get(device_rows.policy_rows(method, data, samples))
    np.testing.assert_array_equal(on_device[1], on_host[1])
    pairs = [(on_device[0], on_host[0])]
    pairs.append((device_rows.teacher_rows(method, data), host_rows.teacher_rows(method, data, SHAPE)))
    grouped = (
        jax.device_get(device_rows.group_rows(method, data, samples)),
        host_rows.group_rows(method, data, None, 0, SHAPE),
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
        for sequence in range(len(last)):
            text = tokens[sequence][segments[sequence] != 0].tolist()
            response = target[owner == sequence].tolist()
            assert text[len(text) - len(response) :] == response
            out.append((text[: len(text) - len(response)], response))
    return out


def test_short_sequences_have_fewer_micro_batches():
    """No more rows each than long ones fill, and the same sequences in the same order."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 64)
    prompts, responses = ([np.full(n, i, np.int32) for i, n in enumerate(lengths)] for _ in range(2))
    fixed, (_, most) = host_rows.RowShape(32, 2).pack(16, prompts, responses)
    fewer, (_, found) = host_rows.RowShape(32, 2, adaptive=True).pack(16, prompts, responses)
    assert most == 16 and found == fewer.tokens.shape[0] < 16
    assert fewer.tokens.shape[1] <= 4  # rows of four sequences a micro-batch, each alone
    for rows, parts in ((fixed, most), (fewer, found)):
        size = 64 // parts
        first = [rows.tokens[m].reshape(-1)[rows.last[m]] for m in range(parts)]
        assert [i for part in first for i in part] == list(range(64)) and rows.last.shape == (parts, size)
    _, (minibatches, each) = host_rows.RowShape(32, 2, adaptive=True).pack(8, prompts, responses, minibatches=2)
    assert minibatches == 2 and each < 8


@pytest.mark.parametrize(("samples", "row_multiple"), [(8, 16), (9, 16), (8, 64)])
@pytest.mark.parametrize("median", [150, 300, 600])
def test_padding_of_an_update(samples, row_multiple, median):
    """At most a quarter of the tokens of an update is padding: 256 prompts of a long-tailed mix, rows of 3584 tokens.

    Lengths are log-normal, as those of chats are: prompts around 100 tokens, responses around the median, cut at 1536.
    Micro-batches of a number that was fixed for the longest would leave more than half empty.
    """
    rng = np.random.default_rng(0)
    prompt = np.clip(rng.lognormal(np.log(100), 1.0, 256), 8, 2048).astype(int)
    response = np.clip(rng.lognormal(np.log(median), 0.7, (256, samples)), 1, 1536).astype(int)
    prompts = [np.zeros(n, np.int32) for n in prompt for _ in range(samples)]
    responses = [np.zeros(n, np.int32) for n in response.flat]
    parts = next(n for n in (1, 2, 4, 8, 16) if 256 // n * samples <= 9 * row_multiple)
    rows, (_, found) = host_rows.RowShape(3584, row_multiple, adaptive=True).pack(parts, prompts, responses)
    assert rows.tokens.shape[1] <= 9 * row_multiple and found <= parts
    assert np.mean(rows.segments == 0) <= 0.25
