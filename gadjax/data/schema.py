"""Reads the teacher's Parquet, checks it row by row, and keeps it as Arrow columns.

The schema is that of the published LMSYS-Chat-GPT-5-Chat-Response (docs/algorithm.md, section 4). A file with this
schema, from anywhere, trains without conversion. Columns that training does not need are not read. Each file is read
alone, not through `pyarrow.dataset`, so that files may differ in their kinds of strings and an error names the file.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gadjax.data import hub_dataset, tfds
from gadjax.data.dataset_name import HUB, TFDS, parse
from gadjax.data.parquet import check_columns, open_parquet
from gadjax.errors import UserError
from gadjax.files import expand

Messages = list[dict[str, str]]  # a chat: each {"role": ..., "content": ...}

ROLES = ("system", "user", "assistant")

# Finish reasons of OpenAI-compatible servers: the answer stopped at a token limit.
CUT_REASONS = ("length", "max_tokens")
# Finish reasons of answers that there is nothing to learn from, whatever their text.
MARKED_REASONS = ("content_filter", "refusal", "error", "tool_calls", "function_call")

_REQUIRED = ("content", "teacher_response")
_OPTIONAL = ("category", "finish_reason")  # `category` is not read; a file of another type is not of this schema
_MODEL = "model"  # the teacher's name, as gadjax.collect writes it; a column of another type is ignored
_READ = (*_REQUIRED, "finish_reason", _MODEL)
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
# A column of nulls alone has type null; the check of its rows says what is wrong with it.
_TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def status_of(answer: str | None, finish_reason: str | None) -> str:
    """What an answer is to training: "whole", "cut" at a token limit, or "marked" (there is none to learn from).

    This is the rule of `Rows.cut` and `Rows.marked`, except that an answer that is both is "marked".
    """
    if finish_reason in MARKED_REASONS:
        return "marked"
    if finish_reason in CUT_REASONS:
        return "cut" if (answer or "").strip() else "marked"
    return "whole"


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """All rows of the files, in the order of the files; a row is a chat that ends with a user turn, and its answer.

    Attributes:
      files: names of the files.
      cut: bool [rows], the API stopped the answer at a token limit.
      marked: bool [rows], there is no answer to learn from: it was filtered, refused, failed or a tool call, or is
        empty because the limit was reached before it began.
      models: the teachers' names in the column `model`, each once; empty if the files do not have it.
    """

    files: tuple[str, ...]
    cut: np.ndarray
    marked: np.ndarray
    models: tuple[str, ...]
    _file_ends: np.ndarray  # int64 [files], number of rows up to the end of each file
    _offsets: np.ndarray  # int64 [rows + 1], into the messages
    _roles: pa.LargeStringArray  # [messages]
    _contents: pa.LargeStringArray  # [messages]
    _answers: pa.LargeStringArray  # [rows]

    def __len__(self) -> int:
        return len(self._answers)

    def messages(self, index: int) -> Messages:
        """The chat of a row."""
        turns = range(self._offsets[index], self._offsets[index + 1])
        return [{"role": self._roles[i].as_py(), "content": self._contents[i].as_py()} for i in turns]

    def answer(self, index: int) -> str:
        """The teacher's answer of a row."""
        return self._answers[index].as_py() or ""

    def where(self, index: int) -> str:
        """The place of a row for messages, `FILE: row N`, counted from 0 in each file."""
        file = int(np.searchsorted(self._file_ends, index, side="right"))
        start = int(self._file_ends[file - 1]) if file else 0
        return f"{self.files[file]}: row {index - start}"


def read_rows(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> Rows:
    """Reads and checks teacher Parquet.

    Args:
      paths: a file, a glob, a directory of `*.parquet` shards, a dataset with the same columns (`hf:OWNER/NAME/SPLIT`
        of the hub, `tfds:NAME/SPLIT`), or a sequence of these. The files of a glob or a directory are read in the order
        of their names.

    Raises:
      UserError: names the file, the row (from 0) and the reason.
    """
    files = _find_files(paths)
    tables = [_read_file(file) for file in files]
    columns = {name: pa.concat_arrays([table[name] for table in tables]) for name in tables[0] if name != "lengths"}
    lengths = np.concatenate([table["lengths"] for table in tables])
    reasons, models = columns.pop("finish_reasons"), columns.pop("models")
    cut = _is_in(reasons, CUT_REASONS)
    return Rows(
        files=tuple(files),
        cut=cut,
        marked=_is_in(reasons, MARKED_REASONS) | (cut & _blank(columns["answers"])),
        models=tuple(name for name in models.unique().to_pylist() if name),
        _file_ends=np.cumsum([len(table["lengths"]) for table in tables], dtype=np.int64),
        _offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        **{f"_{name}": column for name, column in columns.items()},
    )


def _find_files(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """The files and TFDS datasets that the paths name, in order."""
    entries = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not entries:
        raise UserError("no Parquet file was named; give a file, a glob or a directory")
    files: list[str] = []
    for entry in (os.fspath(expand(path)) for path in entries):
        if entry.startswith(HUB):
            if field := parse(entry).field:
                raise UserError(f"{entry}: rows of a teacher have columns of fixed names: leave out :{field}")
            found = [os.fspath(path) for path in hub_dataset.files(entry)]
        elif entry.endswith(".jsonl"):
            raise UserError(
                f"{entry}: JSON lines, and training reads Parquet: gadjax.collect writes one beside its ledger "
                "(--out), and pandas.read_json(FILE, lines=True).to_parquet(NEW) makes one of other rows"
            )
        elif entry.startswith(TFDS) or os.path.isfile(entry):
            found = [entry]
        elif os.path.isdir(entry):
            found = sorted(glob.glob(os.path.join(glob.escape(entry), "*.parquet")))
            if not found:
                raise UserError(f"{entry}: the directory holds no *.parquet file")
        elif os.path.exists(entry):  # reading a pipe would wait, and could not be repeated
            raise UserError(f"{entry}: not a regular file; write the data to one")
        elif glob.has_magic(entry):
            found = sorted(path for path in glob.glob(entry, recursive=True) if os.path.isfile(path))
            if not found:
                raise UserError(f"{entry}: no file matches this pattern")
        else:
            raise UserError(f"{entry}: no such file")
        files += found
    return files


def _read_file(file: str) -> dict[str, pa.LargeStringArray | np.ndarray]:
    """The checked columns of one file: roles and contents [messages], others [rows]; `lengths` counts a row's turns."""
    table = _read_table(file)
    if not table.num_rows:
        raise UserError(f"{file}: the file has no rows")

    names = table.column_names
    chats = table["content"]
    _reject(file, pc.is_null(chats), "`content` is null; every row needs a chat")
    lengths = np.asarray(pc.list_value_length(chats)).astype(np.int64)
    _reject(file, lengths == 0, "the chat in `content` is empty")
    turns = pc.list_flatten(chats)
    rows_of_turns = np.repeat(np.arange(len(lengths)), lengths)
    nulls = pa.nulls(table.num_rows, pa.large_string())
    columns = {
        "roles": _strings(pc.struct_field(turns, "role")),
        "contents": _strings(pc.struct_field(turns, "content")),
        "answers": _strings(table["teacher_response"]),
        "finish_reasons": _strings(table["finish_reason"]) if "finish_reason" in names else nulls,
        "models": _strings(table[_MODEL]) if _has_text(table.schema, _MODEL) else nulls,
    }
    for name, column in columns.items():
        _check_unicode(file, name, column, rows_of_turns)
    _check_rows(file, columns, lengths, rows_of_turns)
    return columns | {"lengths": lengths}


def _read_table(file: str) -> pa.Table:
    """The columns of a file that training reads."""
    if file.startswith(TFDS):
        table = tfds.read_table(file, _READ)
        _check_schema(file, table.schema)
        return table
    with open_parquet(file, memory_map=True) as parquet:
        schema = parquet.schema_arrow
        _check_schema(file, schema)
        return parquet.read(columns=[name for name in _READ if name in schema.names])


def _check_schema(file: str, schema: pa.Schema) -> None:
    check_columns(file, schema.names, _REQUIRED)
    for name in _REQUIRED + _OPTIONAL:
        if schema.names.count(name) > 1:
            raise UserError(f"{file}: column `{name}` is there {schema.names.count(name)} times")
    content = schema.field("content").type
    wanted = "list<struct<role: string, content: string>>"
    if not isinstance(content, _LISTS) or not pa.types.is_struct(content.value_type):
        raise UserError(f"{file}: column `content` has type {content}; expected {wanted}")
    for name in ("role", "content"):
        index = content.value_type.get_field_index(name)
        if index < 0 or not _is_text(content.value_type.field(index).type):
            raise UserError(
                f"{file}: column `content` has type {content}, without a string `{name}`; expected {wanted}"
            )
    for name in ("teacher_response", *_OPTIONAL):
        if name in schema.names and not _is_text(schema.field(name).type):
            raise UserError(f"{file}: column `{name}` has type {schema.field(name).type}; expected string")


def _check_rows(
    file: str, columns: dict[str, pa.LargeStringArray], lengths: np.ndarray, rows_of_turns: np.ndarray
) -> None:
    roles, answers = columns["roles"], columns["answers"]
    _reject(file, pc.is_null(roles), "a turn of the chat has a null role", rows_of_turns)
    _reject(file, pc.is_null(columns["contents"]), "a turn of the chat has null content", rows_of_turns)
    unknown = ~_is_in(roles, ROLES)
    if unknown.any():
        role = roles[int(np.argmax(unknown))].as_py()
        _reject(file, unknown, f"unknown role {role!r}; expected one of {', '.join(ROLES)}", rows_of_turns)
    last = np.cumsum(lengths) - 1
    for role in ("assistant", "system"):
        ends = _is_in(roles, (role,))[last]
        _reject(file, ends, f"the chat ends with the {role}; it must end with a user turn")
    excused = _is_in(columns["finish_reasons"], CUT_REASONS + MARKED_REASONS)
    _reject(file, np.asarray(pc.is_null(answers)) & ~excused, "`teacher_response` is null")
    _reject(file, _blank(answers) & ~excused, "`teacher_response` is empty or only white space")


def _check_unicode(file: str, name: str, column: pa.LargeStringArray, rows_of_turns: np.ndarray) -> None:
    """Rejects text that is not UTF-8, which Parquet does not check, before it fails in the middle of a run."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        row = next((i for i in range(len(column)) if not _decodes(column[i])), 0)
        if name in ("roles", "contents"):
            row = rows_of_turns[row]
        raise UserError(f"{file}: row {row}: text in {name} is not valid UTF-8 (a lone surrogate?)") from error


def _decodes(scalar: pa.LargeStringScalar) -> bool:
    try:
        scalar.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _reject(
    file: str, bad: pa.Array | pa.ChunkedArray | np.ndarray, reason: str, rows: np.ndarray | None = None
) -> None:
    """Raises a `UserError` that names the row of the first True in `bad`, whose entry i belongs to row `rows[i]`."""
    bad = np.asarray(bad)
    if bad.any():
        first = int(np.argmax(bad))
        raise UserError(f"{file}: row {first if rows is None else rows[first]}: {reason}")


def _strings(column: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """A column of any string type as one array, with 64-bit offsets, which fit any size."""
    column = column.cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_in(column: pa.LargeStringArray, values: Sequence[str]) -> np.ndarray:
    return np.asarray(pc.is_in(column, value_set=pa.array(values, pa.large_string())))


def _blank(column: pa.LargeStringArray) -> np.ndarray:
    """bool [rows]: the text is null, empty or only white space."""
    return np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))


def _has_text(schema: pa.Schema, name: str) -> bool:
    """Whether there is one column of this name, of text."""
    return schema.names.count(name) == 1 and _is_text(schema.field(name).type)


def _is_text(kind: pa.DataType) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in _TEXTS
