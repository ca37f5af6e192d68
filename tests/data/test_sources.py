"""Which files a path stands for."""

from __future__ import annotations

import os

import pytest

from gadjax.data import sources
from gadjax.data.prompts import read_prompts
from gadjax.data.schema import read_rows
from gadjax.errors import UserError
from tests.data.format_cases import ASSISTANT, KINDS, USER

OWN = {"content": USER, "teacher_response": "own"}
OTHERS = {"messages": USER + ASSISTANT}
TEXTS = {"question": "Hi", "answer": "text"}


@pytest.fixture
def put(tmp_path):
    """Writes a file of the folder `data`: rows, or bytes."""

    def put(name, content):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = next((kind for kind in sorted(KINDS, key=len, reverse=True) if name.endswith(kind)), "")
        path.write_bytes(content if isinstance(content, bytes) else KINDS[kind](content))
        return path

    return put


@pytest.fixture
def mixed(put, tmp_path):
    """Rows of three formats in files of three kinds, and files that hold none."""
    put("a.parquet", [OWN])
    put("b.jsonl.gz", [OTHERS, OTHERS])
    put("c.csv", [TEXTS])
    for name in (
        "README.md",
        "LICENSE.txt",
        "a.parquet.ledger.jsonl",
        "a.parquet.batches.json",
        "d.parquet.partial",
        ".hidden.jsonl",
        "_SUCCESS",
        "dataset_info.json",
        "state.json",
        "old/e.parquet",
    ):
        put(name, b"no rows")
    return tmp_path / "data"


def test_a_folder_of_several_kinds(mixed):
    for paths in (mixed, f"{mixed}/*", str(mixed) + "/"):
        rows = read_rows(paths)
        assert [rows.answer(i) for i in range(len(rows))] == ["own", "Hello.", "Hello.", "text"]
        assert [rows.where(i) for i in range(4)] == [
            f"{mixed}/a.parquet: row 0",
            f"{mixed}/b.jsonl.gz:1",
            f"{mixed}/b.jsonl.gz:2",
            f"{mixed}/c.csv:2",
        ]
        assert [(one.rows, one.files) for one in rows.taken_for] == [(1, 1), (2, 1), (1, 1)]
    assert len(read_prompts(mixed)) == 4


def test_a_file_without_a_telling_name(put):
    """Parquet and Arrow are known by their first bytes."""
    for kind in (".parquet", ".arrow"):
        path = put(f"x{kind}", [OWN])
        path = path.rename(path.with_name(f"{kind[1:]}-file"))
        assert read_rows(path).answer(0) == "own" and sources.find(f"{path.parent}/*-file")
        path.unlink()


@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_folders_that_are_columns(put, tmp_path, kind):
    put(f"model=gpt-5/category=a%2Fb/part-0{kind}", [{"prompt": "1", "completion": "x"}])
    put(f"model=o3/day=7/part-0{kind}", [{"prompt": "2", "completion": "x", "model": "own"}])
    put(f"model=__HIVE_DEFAULT_PARTITION__/part-0{kind}", [{"prompt": "3", "completion": "x"}])
    rows = read_rows(tmp_path / "data")
    assert rows.models == ("gpt-5", "own")
    prompts = {prompt.content[0]["content"]: prompt.category for prompt in read_prompts(tmp_path / "data")}
    assert prompts == {"1": "a/b", "2": None, "3": None}


def test_what_is_not_there(mixed, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, message in [
        (tmp_path / "absent.jsonl", r"absent\.jsonl: no such file"),
        (tmp_path / "empty", r"empty: the directory holds no file of rows \(\.parquet, \.arrow, "),
        (tmp_path / "*.jsonl.zst", r"\*\.jsonl\.zst: no file matches this pattern"),
        (mixed / "*.md", r"\*\.md: no file of rows matches this pattern"),
        (mixed / "README.md", r"README\.md: expected a file that ends in \.parquet"),
        (tmp_path / "pipe.jsonl", "not a regular file"),
        ([], "no file was named"),
    ]:
        with pytest.raises(UserError, match=message):
            sources.find(path)
    with pytest.raises(UserError, match=r"^--prompts=.*absent\.jsonl: no such file"):
        sources.find(tmp_path / "absent.jsonl", "--prompts")
