"""Teacher Parquet: what is read, and the error of each bad file."""

import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.data.schema import read_rows
from gadjax.errors import UserError

pytestmark = pytest.mark.quick

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
USER = {"role": "user", "content": "Hi"}
CHATS = [[USER], [{"role": "system", "content": ""}, USER, {"role": "assistant", "content": "Yes?"}, USER]]


def not_unicode(count: int) -> pa.Array:
    """Strings, the last one a UTF-8 encoded lone surrogate, as broken writers leave them."""
    good, bad = b"ok", b"\xed\xa0\x80"
    offsets = np.array([*range(0, 2 * count, 2), 2 * count + 1], np.int32)
    return pa.Array.from_buffers(
        pa.string(), count, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(good * (count - 1) + bad)]
    )


def test_published_schema_is_read_as_it_is(write):
    path = write(CHATS, ["One", " Two\n"], category=["math", None], id=[7, 8], model=[b"\xff", b""])
    rows = read_rows(path)
    assert len(rows) == 2
    assert [rows.messages(i) for i in range(2)] == CHATS
    assert [rows.answer(i) for i in range(2)] == ["One", " Two\n"]
    assert not rows.cut.any() and not rows.marked.any()


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(TURN),
        pa.list_view(TURN),
        pa.list_(pa.struct([("content", pa.large_string()), ("name", pa.int32()), ("role", pa.large_string())])),
        pa.list_(pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.string())])),
    ],
    ids=["large_list", "list_view", "fields in another order, one more", "dictionary"],
)
def test_arrow_variants(tmp_path, kind):
    answers = pa.array(["One", "Two"])
    for column in (
        answers,
        answers.cast(pa.large_string()),
        answers.dictionary_encode(),
        answers.cast(pa.string_view()),
    ):
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"content": pa.array(CHATS, kind), "teacher_response": column}), path)
        rows = read_rows(path)
        assert [rows.messages(i) for i in range(2)] == CHATS
        assert [rows.answer(i) for i in range(2)] == ["One", "Two"]


def test_row_groups_do_not_matter(tmp_path):
    chats = [[{"role": "user", "content": str(i)}] * (1 + 2 * (i % 2)) for i in range(50)]
    table = pa.table({"content": pa.array(chats, pa.list_(TURN)), "teacher_response": [f"a{i}" for i in range(50)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    rows = read_rows(tmp_path / "x.parquet")
    assert [rows.messages(i) for i in range(50)] == chats
    assert [rows.answer(i) for i in range(50)] == [f"a{i}" for i in range(50)]


def test_shards_by_directory_glob_and_list(write, tmp_path):
    b = write(["b0", "b1"], ["x", "x"], name="shards/b.parquet")
    a = write(["a0"], ["x"], name="shards/a.parquet", finish_reason=["stop"])
    (tmp_path / "shards" / "README.md").write_text("not data")
    for paths in (str(tmp_path / "shards"), str(tmp_path / "shards" / "*.parquet"), [a, b]):
        rows = read_rows(paths)
        assert [rows.messages(i)[0]["content"] for i in range(3)] == ["a0", "b0", "b1"]
        assert [rows.where(i) for i in range(3)] == [f"{a}: row 0", f"{b}: row 0", f"{b}: row 1"]
    assert read_rows([b, a]).messages(0)[0]["content"] == "b0"


def test_finish_reasons_are_told_apart(write):
    reasons = [
        "stop",
        "length",
        "content_filter",
        "refusal",
        "error",
        "tool_calls",
        None,
        "length",
        "max_tokens",
    ]
    answers = ["a", "a", None, "I can't", "", None, "a", "", "a"]
    rows = read_rows(write(["Hi"] * len(reasons), answers, finish_reason=reasons))
    assert np.flatnonzero(rows.cut).tolist() == [1, 7, 8]
    # Row 7 ran into the limit before it wrote anything: there is nothing to keep of it.
    assert np.flatnonzero(rows.marked).tolist() == [2, 3, 4, 5, 7]
    assert rows.answer(2) == ""


def test_real_data(shared):
    train, test = (read_rows(shared / "data" / "teacher" / f"{name}.parquet") for name in ("train", "test"))
    assert (len(train), int(train.cut.sum()), int(train.marked.sum())) == (2256, 1327, 0)
    assert (len(test), int(test.cut.sum()), int(test.marked.sum())) == (200, 126, 0)


@pytest.mark.parametrize(
    ("chats", "answers", "message"),
    [
        ([[USER], None], ["a", "b"], "row 1: `content` is null"),
        ([[USER], []], ["a", "b"], "row 1: the chat in `content` is empty"),
        ([[USER], [None]], ["a", "b"], "row 1: a turn of the chat has a null role"),
        ([[USER, USER, {"role": None, "content": "x"}]], ["a"], "row 0: a turn of the chat has a null role"),
        (
            [[USER], [USER, {"role": "user", "content": None}]],
            ["a", "b"],
            "row 1: a turn of the chat has null content",
        ),
        ([[USER], [{"role": "human", "content": "x"}]], ["a", "b"], "row 1: unknown role 'human'"),
        (
            [[USER], [USER, {"role": "assistant", "content": "x"}]],
            ["a", "b"],
            "row 1: the chat ends with the assistant",
        ),
        ([[{"role": "system", "content": "x"}]], ["a"], "row 0: the chat ends with the system"),
        ([[USER], [USER]], ["a", None], "row 1: `teacher_response` is null"),
        ([[USER], [USER]], ["a", ""], "row 1: `teacher_response` is empty"),
        ([[USER], [USER]], ["a", " \n\t\u3000"], "row 1: `teacher_response` is empty or only white space"),
        ([], [], "the file has no rows"),
    ],
)
def test_bad_rows(write, chats, answers, message):
    good = write(["Hi"], ["Hello"], name="good.parquet")
    bad = write(chats, answers, name="bad.parquet")
    with pytest.raises(UserError, match=re.escape(f"{bad}: {message}")):
        read_rows([good, bad])


def test_an_empty_answer_needs_an_excuse(write):
    path = write(["Hi", "Hi"], ["a", ""], finish_reason=["stop", "stop"])
    with pytest.raises(UserError, match="row 1: `teacher_response` is empty"):
        read_rows(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"teacher_response": ["a"]}, "teacher_response: rows of no known format; expected `content` and"),
        (
            {"content": pa.array([[USER]], pa.list_(TURN)), "answer": ["a"]},
            "content, answer: rows of no known format",
        ),
        (
            {"content": ["Hi"], "teacher_response": ["a"]},
            "column `content` has type string; expected list<struct",
        ),
        (
            {"content": [["Hi"]], "teacher_response": ["a"]},
            "column `content` has type list<.*string>; expected list<struct",
        ),
        (
            {"content": pa.array([[{"from": "user", "content": "Hi"}]]), "teacher_response": ["a"]},
            "column `content` has type .*, without a string `role`",
        ),
        (
            {"content": pa.array([[{"role": "user", "content": 3}]]), "teacher_response": ["a"]},
            "column `content` has type .*, without a string `content`",
        ),
        (
            {"content": pa.array([[USER]], pa.list_(TURN)), "teacher_response": [3]},
            "`teacher_response` has type int64",
        ),
        (
            {"content": pa.array([[USER]], pa.list_(TURN)), "teacher_response": [["a"]]},
            "`teacher_response` has type list",
        ),
        (
            {"content": pa.array([[USER]], pa.list_(TURN)), "teacher_response": ["a"], "finish_reason": [1]},
            "`finish_reason` has type int64; expected string",
        ),
    ],
)
def test_bad_columns(tmp_path, columns, message):
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: .*{message}"):
        read_rows(path)


def test_a_column_twice(tmp_path):
    chats, answers = pa.array([[USER]], pa.list_(TURN)), pa.array(["a"])
    pq.write_table(
        pa.Table.from_arrays([chats, answers, answers], ["content", "teacher_response", "teacher_response"]),
        tmp_path / "x.parquet",
    )
    with pytest.raises(UserError, match="column `teacher_response` is there 2 times"):
        read_rows(tmp_path / "x.parquet")


def test_text_that_is_not_unicode(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"content": pa.array([[USER]] * 3, pa.list_(TURN)), "teacher_response": not_unicode(3)}),
        path,
    )
    with pytest.raises(UserError, match="row 2: text in answers is not valid UTF-8"):
        read_rows(path)
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 5), not_unicode(5)], ["role", "content"])
    chats = pa.ListArray.from_arrays(pa.array([0, 1, 5], pa.int32()), turns)
    pq.write_table(pa.table({"content": chats, "teacher_response": ["a", "b"]}), path)
    with pytest.raises(UserError, match="row 1: text in contents is not valid UTF-8"):
        read_rows(path)


def test_home_in_a_path(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(["Hi"], ["Hello."], name="train-0.parquet")
    assert read_rows("~/train-*.parquet").files == (str(tmp_path / "train-0.parquet"),)


def test_files_that_are_not_there(tmp_path):
    for paths, message in [
        (tmp_path / "none.parquet", "none.parquet: no such file"),
        (str(tmp_path / "*.parquet"), r"\*.parquet: no file matches this pattern"),
        (tmp_path, "the directory holds no file of rows"),
        ([], "no file was named"),
        ("teacher.parquet.ledger.jsonl", "the ledger of a collection; gadjax.collect writes the answers beside it"),
    ]:
        with pytest.raises(UserError, match=message):
            read_rows(paths)


@pytest.mark.parametrize("damage", ["text", "empty", "tail", "middle"])
def test_files_that_are_not_parquet(write, tmp_path, damage):
    good = pathlib.Path(write(["Hi"] * 500, [f"answer {i}" for i in range(500)])).read_bytes()
    path = tmp_path / "bad.parquet"
    noise = bytes(range(256)) * 8
    contents = {
        "text": b"{}\n" * 20,
        "empty": b"",
        "tail": good[:-100],
        "middle": good[:8] + noise + good[8 + len(noise) :],
    }
    path.write_bytes(contents[damage])
    with pytest.raises(UserError, match=r"bad\.parquet: not a Parquet file that can be read"):
        read_rows(path)


def test_the_teachers_names(tmp_path):
    """Each once, from the files that have them; a column of numbers is none of names."""
    base = pa.table({"content": [[{"role": "user", "content": "Hi"}]] * 3, "teacher_response": ["a", "b", "c"]})
    pq.write_table(base.append_column("model", pa.array(["gpt-5", None, "gpt-5"])), tmp_path / "0.parquet")
    pq.write_table(base.append_column("model", pa.array(["o3", "gpt-5", ""])), tmp_path / "1.parquet")
    pq.write_table(base, tmp_path / "2.parquet")
    pq.write_table(base.append_column("model", pa.array([1, 2, 3])), tmp_path / "3.parquet")
    assert read_rows(tmp_path).models == ("gpt-5", "o3")
    assert read_rows(tmp_path / "3.parquet").models == ()
