"""Answers that a later process goes on with, and the settings that they have."""

from __future__ import annotations

import json

import pytest

from gadjax.answer_file import AnswerFile, check_settings
from gadjax.errors import UserError

pytestmark = pytest.mark.quick

NAMES = ["a", "b", "c"]


def opened(path, names=NAMES) -> AnswerFile:
    file = AnswerFile(path, names, ["response"])
    file.read()
    return file


def test_rows_are_kept_and_sorted(tmp_path):
    path = tmp_path / "o.jsonl"
    with opened(path) as file:
        assert file.kept == set()
        file.append(2, {"id": "c", "response": "é\n"})
        with pytest.raises(UserError, match=r"another gadjax\.generate writes it"):
            AnswerFile(path, NAMES, ["response"])
        assert len(path.read_text().splitlines()) == 1
    with opened(path) as file:
        assert file.kept == {2} and file.row(2) == {"id": "c", "response": "é\n"}
        file.append(0, {"id": "a", "response": "x"})
        file.sort()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]
    before = path.stat().st_ino
    with opened(path) as file:
        file.sort()
    assert path.stat().st_ino == before  # rows in order are left as they are
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", ['{"id": "a"}', '{"id": "d", "response": ""}', "[]", "{", '{"id": [], "response": ""}'])
def test_a_damaged_row(tmp_path, bad):
    """In the last line, without an end, it was torn by a kill."""
    path = tmp_path / "o.jsonl"
    path.write_text(bad + '\n{"id": "b", "response": ""}\n')
    with pytest.raises(UserError, match=r"o\.jsonl:1: the line is damaged"):
        opened(path)
    path.write_text('{"id": "b", "response": ""}\n' + bad)
    with opened(path) as file:
        assert file.kept == {1}
    assert path.read_text() == '{"id": "b", "response": ""}\n'


def test_settings(tmp_path):
    out, log = tmp_path / "o.jsonl", tmp_path / "o.log"
    check_settings(out, [out, log], {"seed": 1})
    check_settings(out, [out, log], {"seed": 2})  # there are no answers yet
    out.touch()
    check_settings(out, [out, log], {"seed": 3, "top_p": 0.5})
    assert json.loads((tmp_path / "o.jsonl.settings.json").read_text()) == {"seed": 3, "top_p": 0.5}
    log.write_text("{}\n")
    check_settings(out, [out, log], {"seed": 3, "top_p": 0.5})
    with pytest.raises(
        UserError, match=r"--out=.*o\.jsonl: .*o\.log holds .* \(--seed: 3 before, 4 now\); .* remove .*"
    ):
        check_settings(out, [out, log], {"seed": 4, "top_p": 0.5})
    with pytest.raises(UserError, match=r"\(--top_p: 0\.5 before, None now\)"):
        check_settings(out, [out, log], {"seed": 3})
    for broken in ("{", "[]", None):
        beside = tmp_path / "o.jsonl.settings.json"
        beside.unlink() if broken is None else beside.write_text(broken)
        with pytest.raises(UserError, match=r"o\.log is there, but .*settings\.json does not say"):
            check_settings(out, [out, log], {"seed": 3})


def test_settings_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"absent/o\.jsonl\.settings\.json cannot be written: No such file"):
        check_settings(tmp_path / "absent" / "o.jsonl", [], {})
