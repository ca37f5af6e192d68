"""A log of lines: places, what a kill leaves, one writer at a time."""

from __future__ import annotations

import json
import pathlib

import pytest

from gadjax.append_log import AppendLog
from gadjax.errors import UserError

pytestmark = pytest.mark.quick


def parse(line: bytes) -> int | None:
    """The number of a line, None if the line is not whole."""
    try:
        return json.loads(line)["n"]
    except (ValueError, KeyError, TypeError):
        return None


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    """A log of two lines."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 22}\n')
    return path


def test_a_place_finds_its_line(path):
    """Whether the log was read before the line was appended, or not."""
    for text in ('{"n": 333}', '{"n": 4}'):
        log = AppendLog(path, "a test")
        place = log.append(text)
        assert log.line(place) == text.encode() + b"\n"
        log.close()
    log = AppendLog(path, "a test")
    rows = list(log.read(parse))
    assert [row for _, row in rows] == [1, 22, 333, 4]
    place = log.append('{"n": 5}')
    assert [parse(log.line(at)) for at, _ in [*rows, (place, None)]] == [1, 22, 333, 4, 5]
    log.close()


@pytest.mark.parametrize(
    ("torn", "rows"), [(b'{"n": 3', [1, 22, 4]), (b'{"n": 3}', [1, 22, 3, 4]), (b"\xe5\x00", [1, 22, 4])]
)
def test_a_torn_last_line(path, torn, rows):
    """It is removed, unless only its end is missing."""
    path.write_bytes(path.read_bytes() + torn)
    log = AppendLog(path, "a test")
    list(log.read(parse))
    assert parse(log.line(log.append('{"n": 4}'))) == 4
    log.close()
    assert [parse(line) for line in path.read_bytes().splitlines()] == rows


def test_a_damaged_line_is_named(path):
    path.write_bytes(b"{\n" + path.read_bytes())
    log = AppendLog(path, "a test")
    with pytest.raises(UserError, match=r"log\.jsonl:1: the line is damaged"):
        list(log.read(parse))
    log.close()


def test_one_writer_at_a_time(path):
    log = AppendLog(path, "gadjax.collect")
    with pytest.raises(UserError, match=r"log\.jsonl: another gadjax\.collect writes it; wait for it to end"):
        AppendLog(path, "gadjax.collect")
    log.close()
    AppendLog(path, "gadjax.collect").close()
