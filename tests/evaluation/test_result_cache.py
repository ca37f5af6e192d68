"""Rows that were added are read again, after a kill too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from gadjax.errors import UserError
from gadjax.evaluation.result_cache import ResultCache, digest

WRITER = """
import os, sys
from gadjax.evaluation.result_cache import ResultCache
with ResultCache(sys.argv[1]) as cache:
    for i in range(1000):
        cache.add({str(i): {"text": "é\\n" * i}})
        print(i, flush=True)
"""


def test_rows_come_back(tmp_path):
    path = tmp_path / "cache" / "a.jsonl"
    with ResultCache(path) as cache:
        cache.add({"a": {"x": 1}, "b": {"x": [2, None]}})
        cache.add({"a": {"x": 3}, "c": {}})
    with ResultCache(path) as cache:
        assert len(cache) == 3 and "c" in cache and "d" not in cache
        assert (cache["a"], cache["b"]) == ({"x": 1}, {"x": [2, None]})
    assert len(path.read_text().splitlines()) == 3


def test_a_kill_loses_nothing_that_was_added(tmp_path):
    path = tmp_path / "a.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    for line in writer.stdout:
        if int(line) == 50:
            os.kill(writer.pid, signal.SIGKILL)
            break
    said = 51 + len(writer.stdout.read().splitlines())
    writer.wait()
    with ResultCache(path) as cache:
        assert said <= len(cache) <= said + 1
        assert all(cache[str(i)] == {"text": "é\n" * i} for i in range(len(cache)))


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_every_torn_end(tmp_path, cut):
    """A row without its newline is whole; a row with less is dropped, and the next row starts a line."""
    path = tmp_path / "a.jsonl"
    with ResultCache(path) as cache:
        cache.add({"a": {"text": "first"}, "b": {"text": "the second"}})
    path.write_bytes(path.read_bytes()[:-cut])
    with ResultCache(path) as cache:
        assert ("b" in cache) == (cut == 1)
        cache.add({"c": {"text": "third"}})
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert keys == (["a", "b", "c"] if cut == 1 else ["a", "c"])


@pytest.mark.parametrize("line", ["{nothing", "[]", '{"text": "no key"}', "3"])
def test_a_damaged_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: the line is damaged"):
        ResultCache(path)


def test_one_at_a_time(tmp_path):
    with (
        ResultCache(tmp_path / "a.jsonl"),
        pytest.raises(UserError, match=r"another gadjax\.evaluate writes it"),
    ):
        ResultCache(tmp_path / "a.jsonl")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be written"):
        ResultCache(tmp_path / "file" / "a.jsonl")


def test_digests():
    assert digest("a", {"x": 1, "y": 2}) == digest("a", {"y": 2, "x": 1})
    assert len({digest("a"), digest("b"), digest("a", "b"), digest(["a", "b"]), digest(["ab"])}) == 5
