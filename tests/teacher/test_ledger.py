import os
import subprocess
import sys

import pytest

from gadjax.errors import UserError
from gadjax.teacher.ledger import Key, Ledger, LedgerEntry
from gadjax.teacher.usage import Usage

pytestmark = pytest.mark.quick

QUESTION = {
    "content": [{"role": "user", "content": "Why\u2028?"}],
    "model": "fake",
    "temperature": 0.7,
    "max_tokens": 50,
}


def answer(text):
    return LedgerEntry(text, "stop", 1_700_000_000, 7, None)


def append(ledger, key, text):
    ledger.append(key, answer(text), QUESTION)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        append(ledger, Key("a", "f"), "one\n\u2028 ünd")
        append(ledger, Key("b", "f"), "two")
    return path


def test_keeps_answers_over_runs(path):
    with Ledger(path) as ledger:
        row = {"text": "one\n\u2028 ünd", "finish_reason": "stop", "created": 1_700_000_000, "prompt_tokens": 7}
        assert (
            ledger[Key("a", "f")]
            == {"id": "a", "fingerprint": "f", "sample": 0, "completion_tokens": None} | row | QUESTION
        )
        assert Key("a", "g") not in ledger
        append(ledger, Key("c", "f"), "three")
        assert [ledger[Key(name, "f")]["text"] for name in "cba"] == ["three", "two", "one\n\u2028 ünd"]
        append(ledger, Key("d", "f"), "four")
    with Ledger(path) as ledger:
        assert [ledger[Key(name, "f")]["text"] for name in "abcd"] == ["one\n\u2028 ünd", "two", "three", "four"]
        assert list(ledger) == [Key(name, "f") for name in "abcd"] and len(ledger) == 4


def test_an_appended_answer_has_left_the_process(path):
    with Ledger(path) as ledger:
        append(ledger, Key("c", "f"), "three")
        assert b"three" in path.read_bytes()


def test_sync_reaches_the_disk_once(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with Ledger(path) as ledger:
        append(ledger, Key("c", "f"), "three")
        ledger.sync()
        ledger.sync()
    assert len(synced) == 1


@pytest.mark.parametrize("kept", range(1, 12, 3))
def test_a_torn_last_line_is_cut_off(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[0].replace(b'"a"', b'"c"')[: -kept * 20])
    with Ledger(path) as ledger:
        assert Key("b", "f") in ledger and Key("c", "f") not in ledger
        append(ledger, Key("d", "f"), "four")
    with Ledger(path) as ledger:
        assert ledger[Key("d", "f")]["text"] == "four"
    assert path.read_bytes().startswith(whole)


def test_a_last_line_that_lacks_only_its_end_is_kept(path):
    path.write_bytes(path.read_bytes()[:-1])
    with Ledger(path) as ledger:
        assert ledger[Key("b", "f")]["text"] == "two"
        append(ledger, Key("c", "f"), "three")
    with Ledger(path) as ledger:
        assert [ledger[Key(name, "f")]["text"] for name in "abc"][1:] == ["two", "three"]


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


def test_a_full_disk_is_named_and_loses_no_answer_before(path):
    script = (
        "import resource, sys; from tests.teacher.test_ledger import Key, Ledger, append\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n"
        "with Ledger(sys.argv[1]) as ledger:\n"
        "    for i in range(9): append(ledger, Key(f'id{i}', 'f'), 'text' * 50)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert f"UserError: {path}: cannot be written (File too large); make room there" in done.stderr.splitlines()[-1]
    assert path.stat().st_size == 1500  # of which the last line is torn
    with Ledger(path) as ledger:
        assert 3 <= len(ledger) < 9 and ledger[Key("id0", "f")]["text"] == "text" * 50


def test_ledgers_of_before_there_were_samples_are_read(path):
    path.write_bytes(path.read_bytes().replace(b'"sample": 0, ', b""))
    with Ledger(path) as ledger:
        assert list(ledger) == [Key("a", "f", 0), Key("b", "f", 0)]
        append(ledger, Key("a", "f", 1), "another")
    with Ledger(path) as ledger:
        assert [ledger[Key("a", "f", sample)]["text"] for sample in (0, 1)] == ["one\n\u2028 ünd", "another"]


def test_what_was_used_is_counted_and_what_the_api_did_not_say_is_not_underrated(tmp_path):
    question = QUESTION | {"system": "Be brief."}
    with Ledger(tmp_path / "l") as ledger:
        ledger.append(Key("a", "f"), LedgerEntry("one", "stop", 0, 7, 3), question)
        ledger.append(Key("b", "f"), LedgerEntry("one", "stop", 0, 8, 4), question | {"batch": "batch_1"})
        expected = {False: Usage(7, 3), True: Usage(8, 4)}
        assert ledger.used == expected
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.used == expected
        ledger.append(Key("c", "f"), LedgerEntry("one", "stop", 0, None, None), question)
        prompt, completion = ledger.used[False]
        assert prompt - 7 > len("Why\u2028?Be brief.".encode()) and completion - 3 == 50


def test_attempts_without_an_end_are_set_aside(tmp_path):
    path = tmp_path / "l"
    with Ledger(path) as ledger:
        for name in "abc":
            ledger.begin(Key(name, "f"), Usage(10, 16))
        ledger.dismiss(Key("a", "f"))
        append(ledger, Key("b", "f"), "two")
        assert ledger.at_risk == Usage(10, 16)
    with Ledger(path) as ledger:
        assert (ledger.at_risk, ledger.attempts_open, len(ledger)) == (Usage(10, 16), 1, 1)
        # The answer comes in another run, without a budget: the lost attempt may have been paid for all the same.
        append(ledger, Key("c", "f"), "three")
        assert ledger.at_risk == Usage(10, 16)
    with Ledger(path) as ledger:
        ledger.begin(Key("c", "f", 1), Usage(1, 1))
        ledger.begin(Key("c", "f", 1), Usage(1, 1))  # the first timed out
        append(ledger, Key("c", "f", 1), "three")
    with Ledger(path) as ledger:
        assert (ledger.at_risk, ledger.attempts_open, len(ledger)) == (Usage(11, 17), 2, 3)


@pytest.mark.parametrize("attempt", ['"begun"', '"begun", "most": [1]', '"begun", "most": ["a", 1]', '"x"', "{}"])
def test_damaged_attempts_are_named(path, attempt):
    before = path.read_bytes()
    path.write_bytes(b'{"id": "a", "fingerprint": "f", "sample": 0, "attempt": %s}\n' % attempt.encode() + before)
    with pytest.raises(UserError, match=r"ledger\.jsonl:1: the line is damaged"):
        Ledger(path)
