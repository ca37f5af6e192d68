"""Files of each kind, whole and damaged."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest

from gadjax.data.schema import read_rows
from gadjax.data.table_files import open_columns, partitions_of, read_text_rows, rows_of, suffix_of
from gadjax.errors import UserError
from tests.data.format_cases import KINDS, as_lines

pytestmark = pytest.mark.quick

ROWS = [{"prompt": f"prompt {i}", "completion": "x\n, \" 'ü" * i} for i in range(1, 400)]
COLUMNAR = (".parquet", ".arrow", ".feather", ".ipc")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_with_their_places(tmp_path, kind):
    path = tmp_path / f"x{kind}"
    path.write_bytes(KINDS[kind](ROWS))
    assert suffix_of(path) == f".{kind.split('.')[1]}"
    if kind in COLUMNAR:
        with open_columns(path) as opened:
            found = list(rows_of(path, opened.read(["completion", "absent", "prompt"])))
    else:
        found = list(read_text_rows(path))
    assert [row for _, row in found] == ROWS
    lines = {".jsonl": 1, ".ndjson": 1, ".csv": 2, ".tsv": 2}.get(suffix_of(path))
    assert found[0][0] == (f"{path}:{lines}" if lines else f"{path}: row 0")


def test_places_in_csv_count_lines(tmp_path):
    """A cell may hold several lines, and blank lines stand between rows."""
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffprompt,completion\r\n"a\r\nb",c\r\n\r\nd,\r\n'.encode())
    assert list(read_text_rows(path)) == [
        (f"{path}:2", {"prompt": "a\r\nb", "completion": "c"}),
        (f"{path}:5", {"prompt": "d", "completion": None}),
    ]


def test_cells_may_be_long(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\na," + "long " * 100_000 + "\n")
    assert len(read_rows(path).answer(0)) == 500_000


def test_lines_called_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\n " + as_lines(ROWS[:3]))
    assert [row for _, row in read_text_rows(path)] == ROWS[:3]


def test_column_types_of_arrow(tmp_path):
    """Dictionary codes, views and large strings, in files and streams."""
    prompts, answers = pa.array(["a", "b", "a"]), pa.array(["c", "c", "d"])
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        table = pa.table({"prompt": prompts.cast(kind), "completion": answers.cast(kind)})
        for name, writer in (("x.arrow", pa.ipc.new_file), ("x.ipc", pa.ipc.new_stream)):
            with pa.OSFile(str(tmp_path / name), "wb") as sink, writer(sink, table.schema) as out:
                out.write_table(table)
            rows = read_rows(tmp_path / name)
            assert [rows.answer(i) for i in range(3)] == ["c", "c", "d"]
            assert [rows.messages(i)[0]["content"] for i in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", gzip.compress(as_lines(ROWS))[:-200], r"x\.jsonl\.gz: cannot be read \("),
        ("x.jsonl.gz", as_lines(ROWS), r"x\.jsonl\.gz: cannot be read \("),
        ("x.jsonl.zst", b"no zstd", r"x\.jsonl\.zst: cannot be read \("),
        ("x.csv", b'prompt,completion\na,b\n"c,d\n', r"x\.csv:3: not CSV \(unexpected end of data"),
        ("x.csv", b"prompt,completion\na,b,c\n", r"x\.csv:2: 3 cells, and the header has 2"),
        ("x.csv", b"", r"x\.csv: the file has no rows"),
        ("x.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', r"x\.json: not JSON \(.* at line 2, column 12\)"),
        ("x.json", b"[1]", r"x\.json: row 0: expected an object"),
        ("x.json", b"\xff", r"x\.json:1: not UTF-8"),
        ("x.json", b'["\xff"]', r"x\.json: not UTF-8"),
        ("x.arrow", b"ARROW1 and no more", r"x\.arrow: not an Arrow file that can be read \("),
        ("x.arrow", KINDS[".arrow"](ROWS)[:-300], r"x\.arrow: not an Arrow file that can be read \("),
        ("x.ipc", KINDS[".ipc"](ROWS)[:-300], r"x\.ipc: not an Arrow file that can be read \("),
        ("x.ipc", b"", r"x\.ipc: not an Arrow file that can be read \(|no rows"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as told:
        read_rows(path)
    assert "\n" not in str(told.value)


def test_offsets_of_arrow_that_lead_nowhere(tmp_path):
    """Arrow maps a file without a look at its offsets; reading on would leave the memory of the process."""
    offsets = np.array([0, 2**30, 8], np.int32)
    text = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"a" * 8)])
    table = pa.table({"prompt": text, "completion": ["a", "b"]})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    with pytest.raises(UserError, match=r"x\.arrow: not an Arrow file that can be read"):
        read_rows(tmp_path / "x.arrow")


def test_text_of_columns_that_is_not_utf8(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "\ud800"}) + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl:1: text in answers holds half of a surrogate pair; remove it"):
        read_rows(path)


def test_columns_of_folders():
    assert partitions_of("data/model=a%20b/day=1/x.parquet") == {"model": "a b"}
    assert partitions_of("model=a.parquet") == {}
