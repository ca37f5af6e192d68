"""Outputs that are whole or absent, and "~" in paths."""

from __future__ import annotations

import errno
import pathlib

import pytest

from gadjax import files
from gadjax.errors import UserError

pytestmark = pytest.mark.quick


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expand("~/a/b") == tmp_path / "a" / "b"
    assert files.expand("a~/b") == pathlib.Path("a~/b")
    assert files.expand("~no-such-user/b") == pathlib.Path("~no-such-user/b")


def test_an_output_is_whole_or_as_it_was(tmp_path):
    out = tmp_path / "o"
    for text in ("one", "two"):
        with files.whole_output(out) as partial:
            partial.write_text(text)
        assert out.read_text() == text
    with pytest.raises(ZeroDivisionError), files.whole_output(out) as partial:
        partial.write_text("three")
        1 / 0  # noqa: B018
    assert out.read_text() == "two"
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_be_written_names_the_flag(tmp_path):
    refused = pytest.raises(UserError, match=f"--out={tmp_path} cannot be written: Is a directory")
    with refused, files.whole_output(tmp_path):
        raise AssertionError("must not get here")
    refused = pytest.raises(UserError, match="--out=o cannot be written: No space left on device")
    with refused, files.writing(pathlib.Path("o")):
        raise OSError(errno.ENOSPC, "No space left on device")
