import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.errors import UserError
from gadjax.teacher.inspect import inspect, visible
from gadjax.teacher.ledger import Key, Ledger, LedgerEntry
from gadjax.teacher.usage import Usage

# Clears the screen, rings, retitles the window, turns text around, goes back to the line's start.
HOSTILE = "\x1b[2J\x07\x1b]0;owned\x07 \u202eab\r\x9b31m\u2028"


def rows():
    chats = [[{"role": "user", "content": f"prompt {i % 8}"}] for i in range(10)]
    return {
        "content": chats,
        "teacher_response": [HOSTILE, "", "same", "same", "same", None, "cut", "six", "same", "nine"],
        "finish_reason": ["stop", "error", "stop", "stop", "stop", "refusal", "length", None, "stop", "stop"],
        "category": ["a" + HOSTILE, *["b"] * 9],
        "model": ["m"] * 10,
        "completion_tokens": list(range(10)),
        "id": [str(i) for i in range(10)],
        "unknown": [HOSTILE] * 10,
    }


def ledger(path):
    """The same rows as a ledger, with attempts: one ended by an answer, one failed, one lost."""
    columns = rows()
    with Ledger(path) as file:
        for i in range(10):
            key = Key(columns["id"][i], "f")
            if i == 3:
                file.begin(key, Usage(1, 1))
                file.dismiss(key)
                file.begin(key, Usage(1, 1))
                file.begin(key, Usage(1, 1))
            answer = LedgerEntry(columns["teacher_response"][i], columns["finish_reason"][i], 0, None, i)
            question = {name: columns[name][i] for name in ("content", "category", "model")}
            file.append(key, answer, question)
    return path


def parquet(path):
    pq.write_table(pa.table(rows()), path)
    return path


@pytest.mark.parametrize("make, name", [(parquet, "t.parquet"), (ledger, "t.ledger.jsonl")])
def test_what_a_file_holds(tmp_path, make, name):
    path = make(tmp_path / name)
    lines = list(inspect(path))
    assert lines[0] == f"{path}: 10 answers"
    assert lines[1] == "whole: 7, cut at a token limit: 1, without an answer to learn from: 2"
    assert "finish_reason: stop 6, error 1, refusal 1, length 1, (none) 1" in lines
    assert "model: m 10" in lines
    assert next(line.split() for line in lines if "answer tokens" in line)[2:] == ["0", "0", "4", "9", "9", "4"]
    assert "prompts: 8 different, 2 rows repeat the prompt of another" in lines
    # Four "same", to prompts 2, 3, 4 and 0.
    assert "answers: 3 rows repeat the text of another, 0 of them its prompt too (empty ones aside)" in lines
    assert [line.partition(":")[0] for line in lines if line.startswith("row ")] == ["row 0", "row 4", "row 9"]
    assert "  teacher: nine" in lines
    lost = [line for line in lines if "may have to be paid" in line]
    assert lost == (
        ["attempts of which no answer came, but which may have to be paid for: 1"] if make is ledger else []
    )


@pytest.mark.parametrize("make, name", [(parquet, "t.parquet"), (ledger, "t.ledger.jsonl")])
def test_no_control_character_reaches_the_terminal(tmp_path, make, name):
    lines = list(inspect(make(tmp_path / name)))
    assert all(line.isprintable() for line in lines)
    assert any(r"\x1b[2J\x07\x1b]0;owned" in line and r"\u202eab\r\x9b31m\u2028" in line for line in lines)


def test_long_text_is_cropped():
    assert visible("x" * 301, 300) == "x" * 297 + "..."
    assert visible("\x1b" * 300, 300) == (r"\x1b" * 300)[:297] + "..."
    assert visible("日本語 \U0001f600", 10) == "日本語 \U0001f600"
    assert visible("\ud800", 10) == r"\ud800"


def test_many_names_are_summed_up(tmp_path):
    chats = [[{"role": "user", "content": "p"}]] * 30
    table = {"content": chats, "teacher_response": ["a"] * 30, "category": [f"c{i}" for i in range(30)]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    lines = list(inspect(tmp_path / "t.parquet", shown_rows=0))
    assert any(re.fullmatch(r"category: c0 1, .*, 18 others 18", line) for line in lines)
    assert "answers: 29 rows repeat the text of another, 29 of them its prompt too (empty ones aside)" in lines


def test_a_ledger_that_is_being_written_can_be_looked_at(tmp_path):
    path = ledger(tmp_path / "t.ledger.jsonl")
    with Ledger(path):
        path.write_bytes(path.read_bytes()[:-30])
        assert next(inspect(path)).endswith(": 9 answers")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "p.parquet").write_text("a thesis")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "q.parquet")
    for name, message in [
        ("p.csv", r"expected a teacher's \.parquet"),
        ("absent.parquet", "no such file"),
        ("p.jsonl", r"p\.jsonl:1: not a line of a ledger"),
        ("p.parquet", "not a Parquet file"),
        ("q.parquet", "column `content` is missing; the file has prompt"),
    ]:
        with pytest.raises(UserError, match=message):
            list(inspect(tmp_path / name))
