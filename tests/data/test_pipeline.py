"""From rows to batches: what is counted and cut, and the order by seed and epoch."""

import itertools

import numpy as np
import pytest

from gadjax.data.pipeline import batches, prepare, shared_prompts, split
from gadjax.data.schema import read_rows
from gadjax.errors import UserError

LONG = "the cat sat on the mat " * 20


@pytest.fixture
def make(write, tiny):
    """Prepares a dataset from prompts and answers."""

    def make(prompts, answers, *, limits=(64, 64), cut_answers="drop", tokenizer=tiny, name="x.parquet", **columns):
        rows = read_rows(write(prompts, answers, name=name, **columns))
        return prepare(
            rows,
            tokenizer,
            max_prompt_length=limits[0],
            max_response_length=limits[1],
            cut_answers=cut_answers,
            source_name="data.train",
        )

    return make


@pytest.fixture
def dataset(make):
    """23 rows whose prompts are their numbers."""
    return make([str(i) for i in range(23)], [f"answer {i}" for i in range(23)])


def rows_of(iterator, count=None) -> list[list[int]]:
    return [batch["row"].tolist() for batch in itertools.islice(iterator, count)]


def test_examples_are_the_tokenizers_ids(make, tiny):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who sat"}]
    dataset = make(["the cat", chat], ["on the mat", "what <|im_end|>"])
    assert len(dataset) == 2
    assert dataset[0]["prompt"].tolist() == tiny.prompt_ids([{"role": "user", "content": "the cat"}]).tolist()
    assert dataset[1]["prompt"].tolist() == tiny.prompt_ids(chat).tolist()
    for i, text in enumerate(["on the mat", "what <|im_end|>"]):
        example = dataset[i]
        assert example["response"].tolist() == [*tiny.response_ids(text, ended=False), tiny.turn_end_id]
        assert (example["response"] == tiny.turn_end_id).sum() == 1
        assert example["ended"] is True and example["row"] == i
    with pytest.raises(IndexError):
        dataset[2]


def test_what_is_counted(make):
    reasons = ["stop", "length", "content_filter", "stop", "length", "stop", None]
    prompts = ["a", "b", "c", LONG, LONG, "f", "g"]
    answers = ["a", "b", None, "d", "e", LONG, "g"]
    counts = {how: make(prompts, answers, cut_answers=how, finish_reason=reasons).counts for how in ("drop", "keep")}
    drop, keep = counts["drop"], counts["keep"]
    assert (drop.rows, drop.usable, drop.dropped_marked, drop.dropped_cut, drop.dropped_long_prompt) == (
        7,
        3,
        1,
        2,
        1,
    )
    assert (keep.rows, keep.usable, keep.dropped_marked, keep.dropped_cut, keep.dropped_long_prompt) == (
        7,
        4,
        1,
        0,
        2,
    )
    assert drop.truncated_answers == keep.truncated_answers == 1


def test_rows_keep_their_place_in_the_source(make):
    dataset = make(["a", LONG, "c", "d"], ["a", "b", "c", "d"], finish_reason=["length", "stop", "stop", "stop"])
    assert dataset.rows.tolist() == [2, 3]
    assert [dataset.source.answer(int(i)) for i in dataset.batch([1, 0])["row"]] == ["d", "c"]


def test_eos_follows_complete_answers_only(make, tiny):
    answer = "name the cat"
    ids = tiny.response_ids(answer, ended=False).tolist()
    complete = [*ids, tiny.turn_end_id]
    # (limit, cut by the API): what is trained on
    for limit, reason, expected, truncated in [
        (64, "stop", complete, 0),
        (64, "length", ids, 0),
        (len(complete), "stop", complete, 0),
        (len(ids), "stop", ids, 1),  # the EOS alone does not fit: cut by us
        (len(ids), "length", ids, 0),
        (3, "stop", ids[:3], 1),
        (3, "length", ids[:3], 1),
    ]:
        dataset = make(["a"], [answer], limits=(64, limit), cut_answers="keep", finish_reason=[reason])
        assert dataset[0]["response"].tolist() == expected
        assert dataset[0]["ended"] == (expected == complete)
        assert dataset.counts.truncated_answers == truncated


def test_a_prompt_at_the_limit_is_kept_whole(make, tiny):
    length = len(tiny.prompt_ids([{"role": "user", "content": "the cat"}]))
    assert len(make(["the cat", "a"], ["x", "x"], limits=(length, 8))) == 2
    assert make(["the cat", "a"], ["x", "x"], limits=(length - 1, 8)).rows.tolist() == [1]


def test_batches_are_padded_on_the_right(make, tiny):
    dataset = make(["a", "who sat on the mat of the other cat"], ["name", "what is the name"])
    batch = dataset.batch([1, 0, 1])
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(
        ["prompt", "prompt_length", "teacher", "teacher_length", "row"], np.dtype(np.int32)
    )
    for name, key in [("prompt", "prompt"), ("teacher", "response")]:
        assert batch[name].shape == (3, 32 if name == "prompt" else 16)
        for ids, length, index in zip(batch[name], batch[f"{name}_length"], [1, 0, 1], strict=True):
            assert ids[:length].tolist() == dataset[index][key].tolist()
            assert (ids[length:] == tiny.pad_id).all()


def test_widths_follow_the_data_within_the_maxima(make):
    narrow = make(["a", "b"], ["a", "b"], limits=(2048, 1536))
    assert (narrow.prompt_width, narrow.response_width) == (16, 16)
    assert make(["a", "b"], [LONG, "b"], limits=(64, 50)).response_width == 50
    assert make(["a", "b"], [LONG, "b"], limits=(64, 48)).response_width == 48
    shapes = {array.shape for batch in batches(narrow, batch_size=1, seed=0, num_epochs=3) for array in batch.values()}
    assert shapes == {(1, 16), (1,)}


def test_nothing_usable(make):
    with pytest.raises(
        UserError, match=r"data.train \(.*x.parquet\): no usable row: of 3, 1 are marked.*1 were cut.*1 have"
    ):
        make([LONG, "a", "b"], ["a", "b", None], finish_reason=["stop", "length", "error"])


def test_cut_answers_is_checked(make):
    with pytest.raises(UserError, match=r"data\.cut_answers is 'trim'; expected 'drop' or 'keep'"):
        make(["a"], ["a"], cut_answers="trim")


def test_a_chat_that_the_template_refuses_is_named(make, tiny_directory, chatml):
    from gadjax.data.tokenizer import load_tokenizer

    strict = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + chatml
    user = {"role": "user", "content": "a"}
    with pytest.raises(UserError, match=r"x.parquet: row 1: the chat template of .* refused a chat: one question only"):
        make(["a", [user] * 3], ["a", "b"], tokenizer=load_tokenizer(tiny_directory, chat_template=strict))


def test_progress(write, tiny):
    seen = []
    rows = read_rows(write(["a"] * 600, ["b"] * 600))
    prepare(
        rows, tiny, max_prompt_length=64, max_response_length=64, cut_answers="drop", source_name="x",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(512, 600), (600, 600)]


def test_an_epoch_is_a_permutation_up_to_its_remainder(dataset):
    assert dataset.steps_per_epoch(5) == 4
    epochs = [rows_of(batches(dataset, batch_size=5, seed=3, num_epochs=3))[4 * i : 4 * i + 4] for i in range(3)]
    flat = [list(itertools.chain(*epoch)) for epoch in epochs]
    for rows in flat:
        assert len(rows) == len(set(rows)) == 20
    assert flat[0] != flat[1] != flat[2] != flat[0]
    assert len({frozenset(range(23)) - set(rows) for rows in flat}) > 1  # not always the same three are left out
    assert sorted(itertools.chain(*rows_of(batches(dataset, batch_size=23, seed=3, num_epochs=1)))) == list(range(23))


def test_the_order_depends_on_the_seed_alone(dataset):
    first = rows_of(batches(dataset, batch_size=5, seed=3), 20)
    assert first == rows_of(batches(dataset, batch_size=5, seed=3), 20)
    for seed in (0, 1, 2, 4):
        other = rows_of(batches(dataset, batch_size=5, seed=seed), 20)
        # Neither the same order nor the same order an epoch later, as neighbouring seeds would give in Grain.
        assert not {tuple(rows) for rows in first} & {tuple(rows) for rows in other}


def test_batches_hold_the_rows_they_name(dataset):
    for batch in batches(dataset, batch_size=4, seed=0, num_epochs=1):
        for i, row in enumerate(batch["row"]):
            assert batch["prompt"][i, : batch["prompt_length"][i]].tolist() == dataset[row]["prompt"].tolist()
            assert batch["teacher"][i, : batch["teacher_length"][i]].tolist() == dataset[row]["response"].tolist()


@pytest.mark.parametrize("step", [0, 1, 3, 4, 7, 11])
def test_resuming_at_a_step(dataset, step):
    whole = rows_of(batches(dataset, batch_size=5, seed=1, num_epochs=3))
    assert len(whole) == 12
    assert rows_of(batches(dataset, batch_size=5, seed=1, num_epochs=3, start_step=step)) == whole[step:]
    endless = batches(dataset, batch_size=5, seed=1, start_step=step)
    assert rows_of(endless, 14 - step)[:-2] == whole[step:]


def test_iterator_state(dataset):
    iterator = batches(dataset, batch_size=5, seed=1)
    rows_of(iterator, 6)
    state = iterator.get_state()
    assert state == {"next_index": 6}
    expected = rows_of(iterator, 3)
    again = batches(dataset, batch_size=5, seed=1)
    again.set_state(state)
    assert rows_of(again, 3) == expected


def test_batch_sizes_that_cannot_be(dataset):
    with pytest.raises(UserError, match="batch_size=24 is more than the 23 usable rows"):
        batches(dataset, batch_size=24, seed=0)


def test_a_share_of_the_prompts_is_held_out(make):
    prompts = [f"prompt {i // 2}" for i in range(80)]  # two answers to each
    whole = make(prompts, ["a", "b " * 100] * 40, finish_reason=["stop"] * 79 + ["length"])
    train, held = split(whole, 0.25)
    assert 10 <= len(held) <= 30 and len(train) + len(held) == len(whole) == 79
    assert not shared_prompts(train, held)
    for part in (train, held):
        for index in range(len(part)):
            row = part.rows[index]
            np.testing.assert_array_equal(part.answers[index], whole.answers[whole.rows.tolist().index(row)])
        assert part.counts.usable == len(part)
        assert part.counts.truncated_answers == int((~part.ended).sum())
        assert part.prompt_width == whole.prompt_width
    assert (train.counts.dropped_cut, held.counts.dropped_cut) == (1, 0)
    assert train.counts.rows + held.counts.rows == whole.counts.rows == 80
    again, _ = split(make(prompts[::-1], ["c"] * 80, name="other.parquet"), 0.25)
    assert not shared_prompts(again, held)  # whatever the order and the answers


def test_a_share_that_leaves_nothing(make):
    with pytest.raises(UserError, match=r"holds out 0 of 3 rows of .*x.parquet: choose another share"):
        split(make(["a", "b", "c"], ["x"] * 3), 1e-9)


def test_shared_prompts(make):
    train = make(["a", "b", "c"], ["x", "x", "x"], name="train.parquet")
    heldout = make(["b", "d", "b"], ["y", "y", "y"], name="heldout.parquet")
    assert shared_prompts(train, heldout) == 2
    assert shared_prompts(heldout, train) == 1
    assert shared_prompts(train, make(["d"], ["x"], name="other.parquet")) == 0


@pytest.mark.parametrize(("split", "rows", "cut"), [("train", 2256, 1327), ("test", 200, 126)])
def test_real_data(shared, qwen, split, rows, cut):
    source = read_rows(shared / "data" / "teacher" / f"{split}.parquet")
    complete = []
    for how, dropped in [("drop", cut), ("keep", 0)]:
        dataset = prepare(
            source, qwen, max_prompt_length=512, max_response_length=160, cut_answers=how, source_name=split
        )
        assert (dataset.counts.rows, dataset.counts.dropped_cut, dataset.counts.usable) == (
            rows,
            dropped,
            rows - dropped,
        )
        assert dataset.response_width == 160
        ends = np.array([dataset.answers[i][-1] == qwen.turn_end_id for i in range(len(dataset))])
        assert np.array_equal(ends, dataset.ended)
        complete.append(ends.sum())
    assert 0 < complete[0] == complete[1] <= rows - cut
