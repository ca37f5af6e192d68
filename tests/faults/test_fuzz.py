"""Parsers against inputs that nobody thought of: they read them, or say in one `UserError` what is wrong.

That of a judge's verdicts is in tests/evaluation/test_judge.py.
"""

from __future__ import annotations

import os
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from gadjax.config.check import resolve
from gadjax.config.fields import FIELDS
from gadjax.data.chats import ROLES
from gadjax.data.prompts import read_prompts
from gadjax.data.schema import read_rows
from gadjax.errors import UserError
from tests.faults.bad_input import CHAT, USER


def bounded(examples: int) -> settings:
    """The same examples everywhere: a new find is not the fault of the change that a machine happens to test."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=checks)


# Types around the schema's, and some that have no place in it.
_TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.null())
_OTHERS = (pa.int64(), pa.float32(), pa.bool_(), pa.binary(), pa.date32(), pa.timestamp("ns"), pa.decimal128(12, 2))
_LISTS = (pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 1))

_texts = st.sampled_from(_TEXTS)
_scalars = st.one_of(_texts, st.sampled_from(_OTHERS))
_words = st.one_of(st.sampled_from([*ROLES, "", " ", "a\0b", "<|im_end|>"]), st.text(max_size=5), st.none())


@st.composite
def _chat_types(draw) -> pa.DataType:
    """Mostly a list of structs with `role` and `content`."""
    role, content = draw(st.one_of(_texts, _texts, _scalars)), draw(st.one_of(_texts, _texts, _scalars))
    fields = draw(st.permutations([("role", role), ("content", content)]))
    fields = [*fields, *draw(st.sampled_from([[], [], [("name", pa.int8())], [("role", pa.string())]]))]
    fields = fields[: draw(st.sampled_from([9, 9, 9, 1]))]
    turn = draw(st.sampled_from([pa.struct(fields), pa.struct(fields), pa.struct(fields), pa.string()]))
    return draw(st.sampled_from(_LISTS))(turn)


def _array(draw, kind: pa.DataType, size: int) -> pa.Array:
    """Values that a type can hold, nulls among them."""
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        nulls = pa.array([draw(st.integers(0, 9)) == 0 for _ in range(size)], pa.bool_())
        return pa.StructArray.from_arrays([_array(draw, f.type, size) for f in fields], fields=fields, mask=nulls)
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        lengths = [1 if hasattr(kind, "list_size") else draw(st.integers(0, 3)) for _ in range(size)]
        found = _array(draw, kind.value_type, sum(lengths))
        if pa.types.is_list(kind):
            ends = [sum(lengths[:i]) if i == size or draw(st.integers(0, 9)) else None for i in range(size + 1)]
            return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), found)
        names = [field.name for field in kind.value_type] if pa.types.is_struct(kind.value_type) else []
        assume(len(set(names)) == len(names))  # Python's dictionaries cannot hold others
        values = found.to_pylist()
        rows = [values[sum(lengths[:i]) : sum(lengths[: i + 1])] for i in range(size)]
        return pa.array([None if draw(st.integers(0, 9)) == 0 else row for row in rows], kind)
    if kind in _TEXTS:
        words = [draw(_words) for _ in range(size)]
        return pa.nulls(size) if pa.types.is_null(kind) else pa.array(words, pa.string()).cast(kind)
    numbers = pa.array([draw(st.one_of(st.none(), st.integers(0, 99))) for _ in range(size)], pa.int32())
    return numbers.cast(pa.string()).cast(pa.binary()) if pa.types.is_binary(kind) else _cast(numbers, kind)


def _cast(numbers: pa.Array, kind: pa.DataType) -> pa.Array:
    return numbers.cast(pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else numbers.cast(kind)


@st.composite
def tables(draw) -> pa.Table:
    """Tables around the schema: columns that are missing, doubled, of other types, with nulls and odd text."""
    size = draw(st.integers(0, 4))
    chats = st.sampled_from(["content"] * 4 + ["messages", "conversations", "prompt", "question"])
    answers = st.sampled_from(["teacher_response"] * 4 + ["completion", "response", "answer"])
    columns = [(draw(chats), draw(_chat_types())), (draw(answers), draw(st.one_of(_texts, _texts, _scalars)))]
    columns += [(name, draw(_scalars)) for name in draw(st.lists(st.sampled_from(_MORE), max_size=3))]
    columns = draw(st.permutations(columns))[: draw(st.sampled_from([9, 9, 9, 1]))]
    arrays = [_array(draw, kind, size) for _, kind in columns]
    return pa.table(arrays, names=[name for name, _ in columns])


_MORE = ("finish_reason", "category", "id", "sample", "prompt", "content", "text")


def _whole(rows) -> None:
    """Everything of the rows can be had, and is what a run relies on."""
    for i in range(len(rows)):
        messages, answer = rows.messages(i), rows.answer(i)
        assert messages and messages[-1]["role"] == "user"
        assert all(turn["role"] in ROLES and isinstance(turn["content"], str) for turn in messages)
        assert answer.strip() or rows.cut[i] or rows.marked[i]
        answer.encode()


def _refused(error: UserError, path: pathlib.Path) -> None:
    assert str(path) in str(error) and "\n" not in str(error)


@bounded(300)
@given(tables())
def test_tables_around_the_schema(tmp_path, table):
    path = tmp_path / "fuzz.parquet"
    try:
        pq.write_table(table, path)
    except pa.ArrowNotImplementedError:  # a type that Parquet does not have
        return
    for read in (lambda: _whole(read_rows(path)), lambda: read_prompts(path)):
        try:
            read()
        except UserError as error:
            _refused(error, path)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory) -> dict[str, bytes]:
    """Small valid files by suffix, several pages of each."""
    folder = tmp_path_factory.mktemp("good")
    table = pa.table({"content": pa.array([[USER]] * 40, CHAT), "teacher_response": [f"answer {i}" for i in range(40)]})
    pq.write_table(table, folder / "good.parquet", row_group_size=16)
    for name, writer in (("good.arrow", pa.ipc.new_file), ("good.ipc", pa.ipc.new_stream)):
        with pa.OSFile(str(folder / name), "wb") as sink, writer(sink, table.schema) as out:
            out.write_table(table, max_chunksize=16)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".ipc"])
@bounded(300)
@given(st.data())
def test_bytes_flipped_in_a_file(tmp_path, good_bytes, suffix, data):
    changed = bytearray(good_bytes[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(changed)] * 4 + [len(changed) // 2]))
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(changed[:end])
    for read in (lambda: _whole(read_rows(path)), lambda: read_prompts(path)):
        try:
            read()
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


_values = st.one_of(
    st.integers(),
    st.integers(-3, 40),
    st.sampled_from([2**63, -(2**63), 10**400, -(10**400), 2**31, 1e308, 5e-324]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.sampled_from(["", "[" * 100_000, "{}", '{"a": NaN}', "1" * 5000, "generator", "keep", "\ud800", "a\0"]),
    st.lists(st.one_of(st.sampled_from(["seqkd", "warmup", "gad"]), st.text(max_size=3), st.integers()), max_size=4),
    st.tuples(st.text(max_size=3)),
    st.binary(max_size=3),
)


@bounded(400)
@given(st.dictionaries(st.sampled_from([*FIELDS, "data", "gad", "surplus"]), _values, min_size=1, max_size=4))
def test_configs_of_any_values(tiny_config, fields):
    """A config comes back whole, its fields of their types, or one line says what is wrong."""
    config = tiny_config().unlock()
    for field, value in fields.items():
        *sections, name = field.split(".")
        section = config[sections[0]] if sections else config
        if isinstance(section, ConfigDict):  # an earlier field may have replaced it
            try:
                with section.ignore_type():
                    section[name] = value
            except OverflowError:  # of ml_collections itself: an integer beyond all floats, for a float
                section[name] = sys.float_info.max
    try:
        resolved = resolve(config.lock())
    except UserError as error:
        assert "\n" not in str(error) and ("config" in str(error) or "stage" in str(error))
        return
    assert isinstance(resolved.stages, tuple) and set(resolved.stages) <= {"seqkd", "warmup", "gad"}
    assert not set(fields) & {"data", "gad", "surplus"}
    os.fspath(resolved.student).encode("utf-8", "surrogatepass")


@bounded(200)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_lines_of_any_bytes(tmp_path, content):
    beginnings = {
        ".jsonl": (b"", b'{"prompt": ', b'{"messages": '),
        ".json": (b"", b'[{"prompt": '),
        ".csv": (b"", b"prompt,completion\n"),
        ".jsonl.gz": (b"", b"\x1f\x8b\x08\x00"),
    }
    for suffix, prefixes in beginnings.items():
        path = tmp_path / f"fuzz{suffix}"
        for prefix in prefixes:
            path.write_bytes(prefix + content)
            try:
                assert all(prompt.content[-1]["content"].strip() for prompt in read_prompts(path))
            except UserError as error:
                _refused(error, path)
            try:
                _whole(read_rows(path))
            except UserError as error:
                _refused(error, path)
