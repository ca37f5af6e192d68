import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.data.prompts import read_prompts
from gadjax.errors import UserError

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And then?"},
]


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_jsonl_takes_prompts_and_chats(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"id": "a", "prompt": "One?", "category": "numbers", "turns": ["ignored"]},
        "",
        {"id": 2, "content": CHAT},
    )
    first, second = read_prompts(path)
    assert (first.id, first.category) == ("a", "numbers")
    assert first.content == [{"role": "user", "content": "One?"}]
    assert (second.id, second.content, second.category) == ("2", CHAT, None)


def test_text_takes_a_prompt_a_line(tmp_path):
    path = write(tmp_path / "p.txt", "\ufeffOne?", "", "  Two, überall? ")
    assert [prompt.content[0]["content"] for prompt in read_prompts(path)] == ["One?", "Two, überall?"]


@pytest.mark.parametrize("columns", [{"prompt": ["One?", "Two?"]}, {"content": [CHAT, CHAT[:1]]}])
def test_parquet_takes_either_column(tmp_path, columns):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(columns | {"id": ["a", "b"], "teacher_response": ["x", "y"]}), path)
    prompts = read_prompts(path)
    assert [prompt.id for prompt in prompts] == ["a", "b"]
    assert prompts[0].content == (CHAT if "content" in columns else [{"role": "user", "content": "One?"}])


def test_made_ids_follow_the_content_not_the_order(tmp_path):
    before = read_prompts(write(tmp_path / "a.txt", "One?", "Two?", "One?"))
    after = read_prompts(write(tmp_path / "b.txt", "New!", "Two?", "One?", "One?"))
    assert len({prompt.id for prompt in after}) == 4
    assert {prompt.id for prompt in before} < {prompt.id for prompt in after}


BAD = {
    "json": (['{"prompt": "One?"}', '{"prompt": '], r"p\.jsonl:2: not JSON"),
    "list": (["[1]"], r"p\.jsonl:1: expected an object"),
    "missing": ([{"id": "a"}], r"p\.jsonl:1: neither `prompt` nor `content`"),
    "both": ([{"prompt": "One?", "content": CHAT}], r"p\.jsonl:1: both"),
    "type": ([{"prompt": 3}], r"p\.jsonl:1: `prompt` is int; expected text"),
    "blank": ([{"prompt": " "}], r"p\.jsonl:1: the user's text is empty"),
    "surrogate": (['{"prompt": "\\ud800"}'], r"p\.jsonl:1: .*surrogate"),
    "surrogate, id": (['{"prompt": "One?", "id": "\\udc00"}'], r"p\.jsonl:1: `id` holds half of a surrogate pair"),
    "surrogate, category": (['{"prompt": "1", "category": "\\udc00"}'], r"p\.jsonl:1: `category` holds half of a surr"),
    "duplicate": ([{"id": "a", "prompt": "1"}, {"id": "a", "prompt": "2"}], r":2: id 'a' is that of .*:1 too"),
    "no chat": ([{"content": []}], r"p\.jsonl:1: `content` must be a list"),
    "role": ([{"content": [{"role": "robot", "content": "Hi"}]}], r"p\.jsonl:1: a message"),
    "ends": ([{"content": CHAT[:2]}], r"p\.jsonl:1: the chat ends with the assistant"),
    "empty": ([""], r"p\.jsonl: the file holds no prompts"),
}


@pytest.mark.parametrize("rows, message", BAD.values(), ids=BAD)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_prompts(write(tmp_path / "p.jsonl", *rows))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"p\.pdf: expected a file that ends in \.parquet, \.arrow, .*\.jsonl"):
        read_prompts(write(tmp_path / "p.pdf", "One?"))
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "latin.txt").write_bytes(b"One?\n\xfcber\n")
    with pytest.raises(UserError, match=r"latin\.txt:2: not UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    with pytest.raises(UserError, match="not a Parquet file"):
        read_prompts(write(tmp_path / "p.parquet", "One?"))
    pq.write_table(pa.table({"text": ["One?"]}), tmp_path / "q.parquet")
    with pytest.raises(UserError, match=r"neither `prompt` nor `content` is there; .*; there is `text`"):
        read_prompts(tmp_path / "q.parquet")
    pq.write_table(pa.table({"prompt": ["One?", None]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match=r"n\.parquet: row 1: neither"):
        read_prompts(tmp_path / "n.parquet")


def strings_of(*values: bytes) -> pa.Array:
    """Text as Parquet keeps it, valid UTF-8 or not."""
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value))
    buffers = [None, pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


@pytest.mark.parametrize("column", ["prompt", "id", "category"])
def test_parquet_with_other_bytes_than_utf8(tmp_path, column):
    columns = {name: pa.array(["a", "b"]) for name in ("prompt", "id", "category")}
    pq.write_table(pa.table(columns | {column: strings_of(b"fine", b"\xff\xfe")}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: row 1: text that is not valid UTF-8"):
        read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("column", ["prompt", "id"])
def test_parquet_with_a_column_twice(tmp_path, column):
    values = pa.array(["One?", "Two?"])
    pq.write_table(pa.Table.from_arrays([values] * 3, ["prompt", "id", column]), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=rf"p\.parquet: column `{column}` is there 2 times"):
        read_prompts(tmp_path / "p.parquet")


def test_home_in_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "p.txt", "One?")
    assert len(read_prompts("~/p.txt")) == 1
