"""Sources of models by name, and sets of prompts with the teacher's answers."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.errors import UserError
from gadjax.evaluation.model_sources import ModelSource, parse_pairs, parse_source
from gadjax.evaluation.prompt_sets import Response, read_references, read_set

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
    assert parse_source("m", "api:org/model@2") == ModelSource("m", "api:org/model@2", "api", "org/model@2")
    assert parse_source("m", str(workdir)) == ModelSource("m", str(workdir), "checkpoint", str(workdir), None)
    assert parse_source("m", f"{workdir}@40") == ModelSource("m", f"{workdir}@40", "checkpoint", str(workdir), 40)
    export = parse_source("m", str(workdir / "export" / "generator"))
    assert (export.kind, export.step, export.workdir) == ("export", None, workdir)
    assert parse_source("m", f"{workdir}@40").workdir == workdir
    assert parse_source("m", "org/model") == ModelSource("m", "org/model", "export", "org/model")
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
EXPECTED = [Response("one", "stop"), Response("two", "length"), None, None, Response("five", "stop")]


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
    first = f"{path}: row 0" if kind == "parquet" else f"{path}:1"
    assert found.sampling.values == {"temperature": {0.7: first}, "top_p": {1.0: first}}
    found.check_sampling(0.7)
    with pytest.raises(UserError, match=r"the set s was collected at temperature 0\.7; give it as --teacher_temp"):
        found.check_sampling(1.0)
    few = read_set("s", path, max_prompts=2)
    assert (len(few.prompts), few.teacher) == (2, EXPECTED[:2])


def test_answers_that_the_teacher_alone_would_not_give_have_no_kl(tmp_path):
    path = tmp_path / "t.parquet"
    rows = [{"id": str(i), "prompt": "a", "teacher_response": "b", "request_fields": None} for i in range(3)]
    rows[2] |= {"request_fields": '{"top_k": 20}'}
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(UserError, match=r"the set s was collected with top_k=20 \(.*t\.parquet: row 2\)"):
        read_set("s", path).check_sampling(1.0)
    read_set("s", path, max_prompts=2).check_sampling(1.0)
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "a", "teacher_response": "b", "top_p": 0.9}))
    with pytest.raises(UserError, match="collected with top_p < 1, whose KL is infinite"):
        read_set("s", path).check_sampling(1.0)


SAMPLES = [
    {"id": i, "prompt": f"prompt {i}", "teacher_response": f"answer {i}, {sample}", "sample": sample, "temperature": t}
    for sample, t in ((0, 0.7), (1, 1.0))
    for i in "ab"
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_several_answers_to_a_prompt(tmp_path, kind):
    """gadjax.collect --n=2 writes two answers to a prompt; the first is taken, in sets and as references."""
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, SAMPLES)))
    else:
        pq.write_table(pa.Table.from_pylist(SAMPLES), path)
    found = read_set("s", path)
    assert [prompt.id for prompt in found.prompts] == ["a", "b"]
    assert found.teacher == [Response("answer a, 0", "stop"), Response("answer b, 0", "stop")]
    assert list(found.sampling.temperatures) == [0.7]
    assert read_references(path, found) == ["answer a, 0", "answer b, 0"]
    # A prompt's answers side by side.
    path = tmp_path / "side.jsonl"
    path.write_text("\n".join(json.dumps(SAMPLES[i]) for i in (0, 2, 1, 3)))
    assert [answer.text for answer in read_set("s", path).teacher] == ["answer a, 0", "answer b, 0"]


def test_answers_of_datasets(tmp_path):
    """The teacher's answers are read from a hub's dataset, with or without a named field, and from TFDS."""
    chats = [[{"role": "user", "content": f"prompt {i}"}, {"role": "assistant", "content": "x"}] for i in range(3)]
    rows = [{"messages": chats[i], "teacher_response": f"answer {i}", "finish_reason": "stop"} for i in range(3)]
    rows[1]["finish_reason"] = "refusal"
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    found = read_set("s", f"hf:{tmp_path}/hub/train:messages")
    expected = [Response("answer 0", "stop"), None, Response("answer 2", "stop")]
    assert found.teacher == expected and found.prompts[0].content == [{"role": "user", "content": "prompt 0"}]
    rows = [{"content": chats[i][:1], "temperature": 0.7} | row for i, row in enumerate(rows)]
    for row in rows:
        del row["messages"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    assert read_set("s", f"hf:{tmp_path}/hub/train").teacher == expected
    from gadjax.data import tfds

    folder = tfds.publish(tmp_path / "hub" / "train.parquet", tmp_path / "data" / "my_teacher")
    published = read_set("s", f"tfds:{folder}/train")
    assert published.teacher == expected and list(published.sampling.temperatures) == [0.7]
    assert read_references(f"tfds:{folder}/train", published) == ["answer 0", "answer 1", "answer 2"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*CHAT, {"role": "assistant", "content": "one"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "one"}]},
        {"prompt": "hi", "completion": "one"},
        {"prompt": "hi", "response": "one"},
        {"instruction": "hi", "output": "one"},
        {"question": "hi", "answer": "one"},
    ],
    ids=lambda row: "+".join(row),
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_answers_of_other_formats(tmp_path, row, kind):
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    found = read_set("s", path)
    assert found.chats == [CHAT] and found.teacher == [Response("one", "stop")]
    assert read_references(path, found) == ["one"]


def test_what_gadjax_generate_writes_is_no_teacher(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps({"content": CHAT, "response": "one"}))
    found = read_set("s", path)
    assert found.teacher is None and read_references(path, found) == ["one"]


def test_messages_name_the_flag(tmp_path):
    (tmp_path / "p.txt").write_text("a")
    for name in ("absent.jsonl", "p.csv"):
        with pytest.raises(UserError, match=rf"^--sets=s={tmp_path}/{name}: "):
            read_set("s", tmp_path / name)
        with pytest.raises(UserError, match=rf"^--references=s={tmp_path}/{name}: "):
            read_references(tmp_path / name, read_set("s", tmp_path / "p.txt"))


def test_a_set_without_answers(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\n")
    found = read_set("s", path)
    assert found.teacher is None and found.answered == []
    with pytest.raises(UserError, match="the set s has no teacher's answers"):
        found.check_sampling(1.0)


def test_references(tmp_path):
    """References are found by chat, whatever the id, or by id if all chats differ; in Parquet too."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n')
    references = tmp_path / "r.jsonl"
    references.write_text(
        '{"id": 2, "prompt": "d", "response": "to b"}\n{"id": 1, "prompt": "c", "response": "to a"}\n'
    )
    assert read_references(references, read_set("s", prompts)) == ["to a", "to b"]
    shifted = tmp_path / "shifted.jsonl"  # numbered from 0
    shifted.write_text(
        "".join(json.dumps({"id": i, "prompt": c, "response": f"to {c}"}) + "\n" for i, c in enumerate("ab"))
    )
    assert read_references(shifted, read_set("s", prompts)) == ["to a", "to b"]
    lines = shifted.read_text().splitlines(keepends=True)
    without = tmp_path / "without.jsonl"  # an answer to one of them; another row has its number
    without.write_text("".join(line for line in lines if "to b" not in line))
    with pytest.raises(UserError, match=r"--references=s=.*: the file has no answer to prompt '2' of the set"):
        read_references(without, read_set("s", prompts))
    twice = tmp_path / "twice.jsonl"  # of rows with one chat, that with the prompt's id
    twice.write_text(
        "".join(
            json.dumps({"id": i, "prompt": c, "response": f"{i} to {c}"}) + "\n"
            for i, c in ((7, "a"), (1, "a"), (8, "b"))
        )
    )
    assert read_references(twice, read_set("s", prompts)) == ["1 to a", "8 to b"]
    table = [{"content": [{"role": "user", "content": c}], "teacher_response": f"to {c}"} for c in "ba"]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "r.parquet")
    assert read_references(tmp_path / "r.parquet", read_set("s", prompts)) == ["to a", "to b"]
    prompts.with_suffix(".txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"--references=s=.*: expected rows with `response`"):
        read_references(prompts.with_suffix(".txt"), read_set("s", prompts))
