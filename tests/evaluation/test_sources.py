"""Models by name, and sets of prompts with what the teacher said."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.errors import UserError
from gadjax.evaluation.sources import (
    Source,
    TeacherAnswer,
    parse_pairs,
    parse_source,
    read_references,
    read_set,
)

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    (folder / "export" / "generator").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    return folder


def test_pairs():
    assert parse_pairs(["a=b", " c = /d=e "], "--models") == {"a": "b", "c": "/d=e"}
    assert parse_pairs([], "--models") == {}


@pytest.mark.parametrize("pair", ["a", "a=", "=b", ""])
def test_what_is_no_pair(pair):
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        parse_pairs([pair], "--models")


def test_sources(workdir, monkeypatch):
    assert parse_source("m", "api:org/model@2") == Source("m", "api:org/model@2", "api", "org/model@2")
    assert parse_source("m", str(workdir)) == Source("m", str(workdir), "checkpoint", str(workdir), None)
    assert parse_source("m", f"{workdir}@40") == Source("m", f"{workdir}@40", "checkpoint", str(workdir), 40)
    export = parse_source("m", str(workdir / "export" / "generator"))
    assert (export.kind, export.step, export.workdir) == ("export", None, workdir)
    assert parse_source("m", f"{workdir}@40").workdir == workdir
    assert parse_source("m", "org/model") == Source("m", "org/model", "export", "org/model")
    assert parse_source("m", "org/model").workdir is None
    monkeypatch.chdir(workdir)
    assert parse_source("m", "org/model").workdir is None  # of the hub, whatever the current folder is
    assert parse_source("m", "export/generator").workdir == workdir


def test_a_folder_with_an_at_sign(tmp_path):
    folder = tmp_path / "model@2"
    folder.mkdir()
    assert parse_source("m", str(folder)).kind == "export"


ROWS = [
    {"content": CHAT, "teacher_response": "one", "finish_reason": "stop"},
    {"content": CHAT, "teacher_response": "two", "finish_reason": "length"},
    {"content": CHAT, "teacher_response": "no", "finish_reason": "refusal"},
    {"content": CHAT, "teacher_response": "", "finish_reason": "length"},
    {"content": CHAT, "teacher_response": "five", "finish_reason": None},
]
EXPECTED = [TeacherAnswer("one", True), TeacherAnswer("two", False), None, None, TeacherAnswer("five", True)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_teachers_answers(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    rows = [row | {"temperature": 0.7, "top_p": 1.0} for row in ROWS]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = read_set("s", path)
    assert found.teacher == EXPECTED and found.answered == [0, 1, 4]
    assert len(found.prompts) == 5 and len({prompt.id for prompt in found.prompts}) == 5
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.sampling == {"temperature": {0.7}, "top_p": {1.0}}
    found.check_sampling(0.7)
    with pytest.raises(UserError, match=r"the set s was collected at temperature 0\.7; give it as --teacher_temp"):
        found.check_sampling(1.0)
    few = read_set("s", path, max_prompts=2)
    assert (len(few.prompts), few.teacher) == (2, EXPECTED[:2])


def test_truncated_answers_have_no_kl(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "a", "teacher_response": "b", "top_p": 0.9}))
    with pytest.raises(UserError, match="collected with top_p < 1, whose KL is infinite"):
        read_set("s", path).check_sampling(1.0)


def test_a_set_without_answers(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\n")
    found = read_set("s", path)
    assert found.teacher is None and found.answered == []
    with pytest.raises(UserError, match="the set s has no teacher's answers"):
        found.check_sampling(1.0)


def test_references(tmp_path):
    """By id; a row whose id differs, by its chat; Parquet of the teacher's schema too."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n')
    references = tmp_path / "r.jsonl"
    references.write_text(
        '{"id": 9, "prompt": "b", "response": "to b"}\n{"id": 1, "prompt": "c", "response": "to a"}\n'
    )
    assert read_references(references, read_set("s", prompts)) == ["to a", "to b"]
    table = [{"content": [{"role": "user", "content": c}], "teacher_response": f"to {c}"} for c in "ba"]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "r.parquet")
    assert read_references(tmp_path / "r.parquet", read_set("s", prompts)) == ["to a", "to b"]
    prompts.with_suffix(".txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"--references=s=.*: expected a \.jsonl or \.parquet file"):
        read_references(prompts.with_suffix(".txt"), read_set("s", prompts))
