import os

import pytest

from gadjax.errors import UserError
from gadjax.teacher.ledger import Answer, Ledger

QUESTION = {"content": [{"role": "user", "content": "Why\u2028?"}], "model": "fake", "temperature": 0.7}


def answer(text):
    return Answer(text, "stop", 1_700_000_000, 7, None)


def append(ledger, key, text):
    ledger.append(key, answer(text), QUESTION)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        append(ledger, ("a", "f"), "one\n\u2028 ünd")
        append(ledger, ("b", "f"), "two")
    return path


def test_keeps_answers_over_runs(path):
    with Ledger(path) as ledger:
        row = {"text": "one\n\u2028 ünd", "finish_reason": "stop", "created": 1_700_000_000, "prompt_tokens": 7}
        assert ledger["a", "f"] == {"id": "a", "fingerprint": "f", "completion_tokens": None} | row | QUESTION
        assert ("a", "g") not in ledger
        append(ledger, ("c", "f"), "three")
        assert [ledger[name, "f"]["text"] for name in "cba"] == ["three", "two", "one\n\u2028 ünd"]
        append(ledger, ("d", "f"), "four")
    with Ledger(path) as ledger:
        assert [ledger[name, "f"]["text"] for name in "abcd"] == ["one\n\u2028 ünd", "two", "three", "four"]
        assert list(ledger) == [(name, "f") for name in "abcd"] and len(ledger) == 4


def test_an_appended_answer_has_left_the_process(path):
    with Ledger(path) as ledger:
        append(ledger, ("c", "f"), "three")
        assert b"three" in path.read_bytes()


def test_sync_reaches_the_disk_once(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with Ledger(path) as ledger:
        append(ledger, ("c", "f"), "three")
        ledger.sync()
        ledger.sync()
    assert len(synced) == 1


@pytest.mark.parametrize("kept", range(1, 12, 3))
def test_a_torn_last_line_is_cut_off(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[0].replace(b'"a"', b'"c"')[: -kept * 20])
    with Ledger(path) as ledger:
        assert ("b", "f") in ledger and ("c", "f") not in ledger
        append(ledger, ("d", "f"), "four")
    with Ledger(path) as ledger:
        assert ledger["d", "f"]["text"] == "four"
    assert path.read_bytes().startswith(whole)


def test_a_last_line_that_lacks_only_its_end_is_kept(path):
    path.write_bytes(path.read_bytes()[:-1])
    with Ledger(path) as ledger:
        assert ledger["b", "f"]["text"] == "two"
        append(ledger, ("c", "f"), "three")
    with Ledger(path) as ledger:
        assert [ledger[name, "f"]["text"] for name in "abc"][1:] == ["two", "three"]


def test_damage_elsewhere_is_named(path):
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:20] + b"\n" + first)
    with pytest.raises(UserError, match=r"ledger\.jsonl:2: the line is damaged"):
        Ledger(path)
    path.write_bytes(first + second.replace(b'"content"', b'"contents"'))  # an answer to nobody knows what
    with pytest.raises(UserError, match=r"ledger\.jsonl:2: the line is damaged"):
        Ledger(path)


def test_one_writer_at_a_time(path):
    with Ledger(path), pytest.raises(UserError, match=r"ledger\.jsonl: another gadjax\.collect writes it"):
        Ledger(path)
    Ledger(path).__exit__()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent/ledger\.jsonl: cannot be written"):
        Ledger(tmp_path / "absent" / "ledger.jsonl")
