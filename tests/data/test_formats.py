"""Formats of rows: what each becomes, what is refused, and that the same rows are the same in all of them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gadjax.data.prompts import read_prompts
from gadjax.data.schema import read_rows
from gadjax.errors import UserError
from tests.data.format_cases import ASSISTANT, KINDS, PAGE, READ, REFUSED, USER, as_lines, page, refusal


def rows_of(path, columns=""):
    rows = read_rows(path, columns)
    return [(rows.messages(i), rows.answer(i)) for i in range(len(rows))]


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("case", READ, ids=lambda case: json.dumps(case.row)[:50])
def test_what_is_read(tmp_path, case, kind):
    path = tmp_path / f"x{kind}"
    path.write_bytes(KINDS[kind]([case.row]))
    assert rows_of(path, case.columns) == [(case.chat, answer) for answer in case.answers]


@pytest.mark.parametrize(
    "case", [case for case in READ if not case.columns], ids=lambda case: json.dumps(case.row)[:50]
)
def test_prompts_of_the_same_rows(tmp_path, case):
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines([case.row]))
    assert [prompt.content for prompt in read_prompts(path)] == [case.chat]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.what)
def test_what_is_refused(tmp_path, case):
    found = refusal(case, tmp_path)
    assert found == case.message or (case.message.endswith(("(", "such as")) and found.startswith(case.message))
    assert "\n" not in found


def test_the_page_is_current():
    """Write it anew with `python -m tests.data.format_cases`."""
    assert PAGE.read_text(encoding="utf-8") == page()


_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(str.strip)


def _turns(user, assistant):
    return {"role": "user", "content": user}, {"role": "assistant", "content": assistant}


_chats = st.lists(st.tuples(_texts, _texts), max_size=2).flatmap(
    lambda turns: st.builds(
        lambda system, last: [
            *([{"role": "system", "content": system}] if system else []),
            *(turn for pair in turns for turn in _turns(*pair)),
            {"role": "user", "content": last},
        ],
        st.one_of(st.none(), _texts),
        _texts,
    )
)
_reasons = st.sampled_from(["stop", "length", "refusal", None])
_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


def _alpaca(chat, answer):
    system = chat[0]["content"] if chat[0]["role"] == "system" else None
    turns = [turn["content"] for turn in chat if turn["role"] != "system"]
    history = [list(pair) for pair in zip(turns[::2], turns[1::2], strict=False)]
    return {"instruction": turns[-1], "output": answer, "system": system, "history": history}


# A chat and its answer as a row of each format that can hold any chat.
_WRITERS = {
    "gadjax": lambda chat, answer: {"content": chat, "teacher_response": answer},
    "openai": lambda chat, answer: {"messages": [*chat, {"role": "assistant", "content": answer}]},
    "sharegpt": lambda chat, answer: {
        "conversations": [
            {"from": _SHAREGPT[turn["role"]], "value": turn["content"]}
            for turn in [*chat, {"role": "assistant", "content": answer}]
        ]
    },
    "trl": lambda chat, answer: {"prompt": chat, "completion": [{"role": "assistant", "content": answer}]},
    "response": lambda chat, answer: {"prompt": chat, "response": answer},
    "alpaca": _alpaca,
    "question": lambda chat, answer: {"question": chat, "answer": answer},
    "parts": lambda chat, answer: {
        "content": [t | {"content": [{"type": "text", "text": part} for part in t["content"]]} for t in chat],
        "teacher_response": answer,
    },
}
_BOUNDED = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_BOUNDED
@given(
    st.lists(st.tuples(_chats, _texts, st.sampled_from(["stop", "length", "refusal", None])), min_size=1, max_size=3)
)
def test_the_same_rows_in_any_format(tmp_path, given_rows):
    expected = [(chat, answer) for chat, answer, _ in given_rows]
    for write in _WRITERS.values():
        rows = [write(chat, answer) | {"finish_reason": why, "model": "m"} for chat, answer, why in given_rows]
        for kind in (".jsonl", ".json", ".parquet", ".arrow"):
            path = tmp_path / f"x{kind}"
            path.write_bytes(KINDS[kind](rows))
            found = read_rows(path)
            assert [(found.messages(i), found.answer(i)) for i in range(len(found))] == expected
            assert found.cut.tolist() == [why == "length" for *_, why in given_rows]
            assert found.marked.tolist() == [why == "refusal" for *_, why in given_rows]
            assert found.models == ("m",)


@_BOUNDED
@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=3))
def test_the_same_texts_in_any_kind_of_file(tmp_path, pairs):
    expected = [([{"role": "user", "content": prompt}], answer) for prompt, answer in pairs]
    for prompt, answer in (("prompt", "completion"), ("question", "answer"), ("instruction", "output")):
        rows = [{prompt: pair[0], answer: pair[1]} for pair in pairs]
        for kind, content in KINDS.items():
            path = tmp_path / f"x{kind}"
            path.write_bytes(content(rows))
            assert rows_of(path) == expected


def test_rows_of_different_formats_in_a_file(tmp_path):
    """The run says how many were taken for each."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines([{"question": "Hi", "answer": "a"}, *[{"messages": USER + ASSISTANT}] * 2]) + b"\n")
    rows = read_rows(path)
    assert [(one.label, one.rows, one.files) for one in rows.taken_for] == [
        ("questions with answers, `question`, `answer`", 1, 1),
        ("OpenAI, `messages`", 2, 1),
    ]
    assert rows.where(2) == f"{path}:3"


def test_rows_without_an_answer_are_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines([{"messages": USER + ASSISTANT}, *[{"messages": USER}] * 3]))
    with pytest.raises(UserError, match=r"x\.jsonl:2: .* so it has no answer, as in 2 other rows$"):
        read_rows(path)


def test_an_answer_that_was_refused_may_be_absent(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines([{"messages": USER, "finish_reason": "refusal"}, {"messages": USER + ASSISTANT}]))
    assert read_rows(path).marked.tolist() == [True, False]


def test_gadjax_s_own_columns_go_first(tmp_path):
    row = {"content": USER, "teacher_response": "own", "messages": USER + ASSISTANT, "question": "q", "answer": "a"}
    for kind in (".jsonl", ".parquet"):
        path = tmp_path / f"x{kind}"
        path.write_bytes(KINDS[kind]([row]))
        assert rows_of(path) == [(USER, "own")]


def test_columns_of_nulls_do_not_count(tmp_path):
    table = pa.table({"prompt": ["Hi"], "completion": pa.nulls(1), "response": ["Hello."], "model": pa.nulls(1)})
    pq.write_table(table, tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet") == [(USER, "Hello.")]


def test_columns_of_provenance_of_other_types_are_ignored(tmp_path):
    table = pa.table(
        {
            "messages": [USER + ASSISTANT],
            "model": [3],
            "category": [[1]],
            "id": [1.5],
            "created": pa.array([2**62]),
            "seed": pa.nulls(1),
            "extra": [{"a": {"b": [1]}}],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    rows = read_rows(tmp_path / "x.parquet")
    assert (rows.models, rows.id(0), rows.answer(0)) == ((), None, "Hello.")


def test_columns_that_the_held_out_file_may_lack(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines([{"question": "Hi", "answer": "a"}]))
    assert read_rows(path, "question_text,gold", optional=True).answer(0) == "a"
    with pytest.raises(UserError, match=r"no column `question_text`, which config\.data\.columns names"):
        read_rows(path, "question_text,gold")
    for columns in ("a,b,c", "a,", ","):
        with pytest.raises(UserError, match=r"config\.data\.columns is .*; expected PROMPT,ANSWER"):
            read_rows(path, columns)


def test_prompts_need_no_answers(tmp_path):
    rows = [{"question": "Hi", "answer": 42}, {"instruction": "Hi", "input": "there"}, {"messages": USER}]
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines(rows))
    found = [prompt.content[-1]["content"] for prompt in read_prompts(path)]
    assert found == ["Hi", "Hi\n\nthere", "Hi"]


def test_several_answers_to_a_prompt_are_one_prompt(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_lines([{"id": "a", "prompt": "Hi", "response": answer} for answer in ("b", "c")]))
    assert [prompt.id for prompt in read_prompts(path)] == ["a"]
    assert len(read_rows(path)) == 2
