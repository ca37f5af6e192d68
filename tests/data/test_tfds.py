"""TFDS datasets in array_record files: published, read as prompts and as training data, without TensorFlow."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.data import tfds
from gadjax.data.dataset_name import parse
from gadjax.data.prompts import read_prompts
from gadjax.data.schema import read_rows
from gadjax.errors import UserError
from gadjax.teacher.collector import SCHEMA

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Ünd?"},
    {"role": "assistant", "content": "日本語"},
    {"role": "user", "content": "And then?"},
]


@pytest.fixture
def teacher(tmp_path):
    """A file as gadjax.collect writes it."""
    rows = []
    for i in range(5):
        row = dict.fromkeys(SCHEMA.names) | {
            "content": CHAT if i == 2 else [{"role": "user", "content": f"prompt {i}"}],
            "teacher_response": f"answer {i}" if i != 3 else None,
            "finish_reason": ["stop", "length", None, "refusal", "stop"][i],
            "id": f"id{i}",
            "created": 1_700_000_000 + i,
            "temperature": 0.7,
            "completion_tokens": 2**20,
            "sample": 0,
        }
        rows.append(row)
    path = tmp_path / "teacher.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


@pytest.fixture
def folder(teacher, tmp_path):
    return tfds.publish(teacher, tmp_path / "data" / "my_teacher")


def test_a_published_file_trains_as_it_did(teacher, folder):
    before, after = read_rows(teacher), read_rows(f"tfds:{folder}/train")
    assert len(after) == len(before) == 5
    assert [*map(after.messages, range(5))] == [*map(before.messages, range(5))]
    assert [*map(after.answer, range(5))] == [*map(before.answer, range(5))]
    assert list(after.cut) == list(before.cut) and list(after.marked) == list(before.marked)
    assert after.where(4) == f"tfds:{folder}/train: row 4"


def test_a_published_file_is_a_dataset_for_others(folder, tmp_path):
    """Another program reads it through TFDS' own API, by name and version."""
    import tensorflow_datasets

    source = tensorflow_datasets.data_source("my_teacher:1.0.0", split="train[40%:]", data_dir=tmp_path / "data")
    assert folder == tmp_path / "data" / "my_teacher" / "1.0.0" and len(source) == 3
    example = source[0]
    assert [role.decode() for role in example["content"]["role"]] == [turn["role"] for turn in CHAT]
    assert example["teacher_response"] == b"answer 2" and example["category"] == b""
    assert example["created"] == 1_700_000_002 and example["temperature"] == pytest.approx(0.7)
    assert example["completion_tokens"] == 2**20 and example["seed"] == -1
    assert [file.name for file in folder.parent.iterdir()] == ["1.0.0"]


def test_a_dataset_is_a_source_of_prompts(folder, tmp_path, monkeypatch):
    prompts = read_prompts(f"tfds:{folder}/train")
    assert [prompt.id for prompt in prompts] == [f"id{i}" for i in range(5)]
    assert prompts[2].content == CHAT and prompts[0].content == [{"role": "user", "content": "prompt 0"}]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    first = read_prompts(f"tfds:{folder}/train[:2]:teacher_response")
    assert [prompt.content for prompt in first] == [[{"role": "user", "content": f"answer {i}"}] for i in range(2)]
    assert first[0].id != "id0" and first[0].category is None
    assert [prompt.content for prompt in read_prompts(f"tfds:{folder}/train[2:3]:content")] == [CHAT]


def test_datasets_of_other_formats(monkeypatch):
    """As TFDS gives them: text as bytes, "" for none, and a sequence of features as one array for each."""
    roles, contents = np.array([b"user", b"assistant"]), np.array([b"Hi", b"Hello."])
    for example in (
        {"instruction": b"Hi", "input": b"", "output": b"Hello.", "model": b"m", "n": np.int64(3)},
        {"messages": {"role": roles, "content": contents}, "model": b"m"},
        {"question": b"Hi", "answer": b"Hello.", "model": b"m"},
    ):
        monkeypatch.setattr(tfds, "open_source", lambda text, example=example: [example] * 2)
        rows = read_rows("tfds:set/train")
        assert [rows.answer(i) for i in range(2)] == ["Hello.", "Hello."] and rows.models == ("m",)
        assert rows.messages(1) == [{"role": "user", "content": "Hi"}]
        assert [prompt.content for prompt in read_prompts("tfds:set/train")] == [rows.messages(0)] * 2
    assert read_rows("tfds:set/train", "answer,question").answer(0) == "Hi"


def test_names():
    assert parse("tfds:a/config:1.2.3/train[:10%]:x") == ("a/config:1.2.3", "train[:10%]", "x")
    assert parse("tfds:/data/a/1.0.0/train") == ("/data/a/1.0.0", "train", None)
    for name in ("tfds:a", "tfds:", "tfds:a/", "tfds:a/train:", "tfds:a/train:b:c d"):
        with pytest.raises(UserError, match="expected tfds:NAME/SPLIT"):
            parse(name)


def test_bad_datasets_are_named(folder, teacher, tmp_path):
    for name, message in [
        ("tfds:absent_set/train", "tfds:absent_set/train: cannot be read as a TFDS dataset"),
        (f"tfds:{tmp_path}/train", "cannot be read as a TFDS dataset"),
        (f"tfds:{folder}/test", "no split 'test'; the dataset has train"),
        (f"tfds:{folder}/train:absent", "no feature absent; the dataset has "),
        (f"tfds:{folder}/train:created", "example 0: `created` is int; expected text, or a chat"),
        (f"tfds:{folder}/train[3:4]:teacher_response", "example 0: the user's text is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            read_prompts(name)
    for out, message in [
        (tmp_path / "My-Set", "'My-Set' is no name of a dataset"),
        (folder, r"1\.0\.0: the dataset is there already"),
    ]:
        with pytest.raises(UserError, match=message):
            tfds.publish(teacher, out)
    (tmp_path / "thesis.parquet").write_text("a thesis")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "q.parquet")
    for file, message in [
        ("thesis", "not a Parquet file"),
        ("q", "column `content` is missing"),
        ("none", "not a Parq"),
    ]:
        with pytest.raises(UserError, match=message):
            tfds.publish(tmp_path / f"{file}.parquet", tmp_path / "data" / "other")
    assert not (tmp_path / "data" / "other").exists() or not list((tmp_path / "data" / "other").iterdir())


def test_a_failed_write_leaves_nothing(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_feature", lambda column, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tfds.publish(teacher, tmp_path / "data" / "my_teacher")
    assert not list((tmp_path / "data" / "my_teacher").iterdir())


def test_tensorflow_is_not_imported(repo, teacher, tmp_path):
    """A file is published by the command, read as prompts and read for training, without TensorFlow."""
    (tmp_path / "hidden" / "tensorflow").mkdir(parents=True)
    (tmp_path / "hidden" / "tensorflow" / "__init__.py").write_text("raise AssertionError('tensorflow is imported')")
    out = tmp_path / "data" / "my_teacher" / "2.1.0"
    code = f"""
import sys
from absl import flags
from gadjax import collect
from gadjax.data.prompts import read_prompts
from gadjax.data.schema import read_rows
collect.define_flags()
flags.FLAGS(["collect", "--publish={teacher}", "--out={out}"])
assert collect.main([]) == 0
assert len(read_prompts("tfds:my_teacher/train")) == len(read_rows("tfds:my_teacher:2.1.0/train")) == 5
print("imported:", sorted({{"tensorflow", "torch", "jax"}} & set(sys.modules)))
"""
    environment = {
        "PYTHONPATH": f"{tmp_path / 'hidden'}:{repo}",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "HOME": str(tmp_path),
    }
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "imported: []"
    assert "my_teacher:2.1.0" in finished.stdout
