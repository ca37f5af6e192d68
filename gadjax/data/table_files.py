"""Opens files of rows by their suffixes: Parquet, Arrow, JSON lines, JSON, CSV, TSV and text.

JSON, CSV and text may be compressed (.gz, .zst, .bz2). They are read row by row, so that an error names the line. The
`key=value` folders of a file's path (hive partitions) are columns, where the file has none of the name.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from gadjax.data.parquet import open_parquet
from gadjax.errors import UserError, first_line
from gadjax.files import expand, parse_json

_ARROW = (".arrow", ".feather", ".ipc")
_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
SUFFIXES = (".parquet", *_ARROW, *_TEXT)
_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}  # the first bytes of files with another suffix
_PARTITIONS = ("model", "category")  # the columns that a folder may stand for
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_BATCH = 4096  # rows that become Python values at once

Placed = tuple[str, dict[str, Any]]  # a row with its place for messages


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix that tells a file's kind, one of `SUFFIXES` without that of a compression; "" if there is none.

    A file with another suffix is known by its first bytes, if it is Parquet or Arrow.
    """
    path = pathlib.Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in _TEXT else ""
    if suffixes and suffixes[-1] in SUFFIXES:
        return suffixes[-1]
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError:
        return ""
    return next((suffix for magic, suffix in _MAGIC.items() if begin.startswith(magic)), "")


def has_columns(path: str | os.PathLike[str]) -> bool:
    """Whether the file is kept by columns, as Parquet and Arrow are."""
    return suffix_of(path) in (".parquet", *_ARROW)


@dataclasses.dataclass(frozen=True)
class Columns:
    """An open file that is kept by columns.

    Attributes:
      path: of the file.
      schema: of its columns, those of its folders among them.
    """

    path: str | os.PathLike[str]
    schema: pa.Schema
    _source: pq.ParquetFile | pa.Table
    _partitions: dict[str, str | None]

    def read(self, wanted: Sequence[str]) -> pa.Table:
        """The `wanted` columns that the file has; raises a `UserError` if one is there twice."""
        names = self.schema.names
        wanted = [name for name in dict.fromkeys(wanted) if name in names]
        for name in wanted:
            if names.count(name) > 1:
                raise UserError(f"{self.path}: column `{name}` is there {names.count(name)} times; keep one")
        own = [name for name in wanted if name not in self._partitions]
        if isinstance(self._source, pa.Table):
            table = self._source.select(own)
            table.validate(full=True)  # Arrow trusts what it maps, and would read beyond a damaged column's end
        else:
            table = self._source.read(columns=own)
        for name in wanted:
            if name in self._partitions:
                column = pa.repeat(pa.scalar(self._partitions[name], pa.string()), self._rows)
                table = table.append_column(name, column) if table.num_columns else pa.table({name: column})
        return table

    @property
    def _rows(self) -> int:
        return self._source.num_rows if isinstance(self._source, pa.Table) else self._source.metadata.num_rows


@contextlib.contextmanager
def open_columns(path: str | os.PathLike[str]) -> Iterator[Columns]:
    """A Parquet or Arrow file, to read inside the block.

    Raises:
      UserError: it cannot be opened or read.
    """
    partitions = partitions_of(path)
    if suffix_of(path) == ".parquet":
        with open_parquet(path, memory_map=True) as parquet:
            yield _columns(path, parquet.schema_arrow, parquet, partitions)
        return
    try:
        with pa.memory_map(os.fspath(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:  # a stream, as `datasets` writes it
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
            yield _columns(path, table.schema, table, partitions)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not an Arrow file that can be read ({first_line(error)})") from error


def _columns(path: Any, schema: pa.Schema, source: pq.ParquetFile | pa.Table, partitions: dict) -> Columns:
    more = {name: value for name, value in partitions.items() if name not in schema.names}
    for name in more:
        schema = schema.append(pa.field(name, pa.string()))
    return Columns(path, schema, source, more)


def filled(schema: pa.Schema) -> list[str]:
    """The names of the columns that are not of nulls alone, as far as their types tell."""
    return [field.name for field in schema if not pa.types.is_null(field.type)]


def rows_of(path: str | os.PathLike[str], table: pa.Table) -> Iterator[Placed]:
    """The rows of a table as Python values, each with its place, `FILE: row N` from 0.

    Raises:
      UserError: a row cannot be read; the message names it.
    """
    number = 0
    for batch in table.to_batches(max_chunksize=_BATCH):
        try:
            rows = batch.to_pylist()
        except (UnicodeDecodeError, ValueError):  # once more, to learn which row it is
            rows = [_row(batch, i, f"{path}: row {number + i}") for i in range(batch.num_rows)]
        for row in rows:
            yield f"{path}: row {number}", row
            number += 1


def _row(batch: pa.RecordBatch, index: int, place: str) -> dict[str, Any]:
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError:
        raise UserError(f"{place}: text that is not valid UTF-8 (a lone surrogate?)") from None
    except ValueError as error:  # Python cannot hold the value: two fields of one name, a time beyond its calendar
        raise UserError(f"{place}: cannot be read ({first_line(error)}); leave it out") from None


def read_text_rows(path: str | os.PathLike[str]) -> Iterator[Placed]:
    """The rows of a file that is not kept by columns, each with its place: `FILE:LINE` from 1, or `FILE: row N` from 0.

    A row of a text file is its line, as `prompt`. An empty cell of CSV is None.

    Raises:
      UserError: names the file, the line or row, and the reason.
    """
    path = pathlib.Path(path)
    suffix = suffix_of(path)
    if suffix == ".txt":
        rows: Iterator[Placed] = ((place, {"prompt": line.strip()}) for place, line in _lines(path))
    elif suffix in (".csv", ".tsv"):
        rows = _read_csv(path, "\t" if suffix == ".tsv" else ",")
    else:
        rows = read_json(path) if suffix == ".json" else read_jsonl(path)
    if not (partitions := partitions_of(path)):
        yield from rows
        return
    for place, row in rows:
        yield place, partitions | row


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[Placed]:
    """The objects of a JSONL file, each with its place for messages, `FILE:LINE`."""
    for place, line in _lines(pathlib.Path(path)):
        row = _parsed(line.rstrip(), place)
        if not isinstance(row, dict):
            raise UserError(f'{place}: expected an object such as {{"prompt": "..."}}')
        yield place, row


def read_json(path: pathlib.Path) -> Iterator[Placed]:
    """The objects of a JSON file: a list of objects, or JSON lines under another name."""
    with _open(path) as file:
        begin = file.read(64).decode("utf-8-sig", "replace").lstrip()
    if begin and not begin.startswith("["):
        yield from read_jsonl(path)
        return
    with _open(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    rows = _parsed(text, os.fspath(path)) if text.strip() else []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f'{path}: row {number}: expected an object such as {{"prompt": "..."}}')
        yield f"{path}: row {number}", row


def _parsed(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        reason: Any = error
        if isinstance(error, json.JSONDecodeError):
            reason = (
                f"{error.msg} at " + (f"line {error.lineno}, " if error.lineno > 1 else "") + f"column {error.colno}"
            )
        raise UserError(f"{place}: not JSON ({reason})") from None


def _read_csv(path: pathlib.Path, delimiter: str) -> Iterator[Placed]:
    """The rows below the header of a CSV file, each with the line on which it begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of the module; a cell may be long
    reader = csv.reader(_csv_lines(path), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for cells in reader:
            place, begin = f"{path}:{begin}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                for name in header:
                    if header.count(name) > 1:
                        raise UserError(f"{place}: column `{name}` is there {header.count(name)} times; keep one")
                continue
            if len(cells) != len(header):
                raise UserError(f"{place}: {len(cells)} cells, and the header has {len(header)}")
            yield place, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: not CSV ({first_line(error)})") from None


def _csv_lines(path: pathlib.Path) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            yield _decoded(line, f"{path}:{number}", number)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            text = _decoded(line, place, number)
            if text.strip():
                yield place, text


def _decoded(line: bytes, place: str, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error.reason})") from None


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed."""
    compression = _COMPRESSED.get(path.suffix.lower())
    try:
        with contextlib.ExitStack() as stack:
            if compression:
                source = stack.enter_context(pa.input_stream(os.fspath(path), compression=compression))
                yield stack.enter_context(io.BufferedReader(source))
            else:
                yield stack.enter_context(path.open("rb"))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None


def partitions_of(path: str | os.PathLike[str]) -> dict[str, str | None]:
    """The columns that a file's folders stand for, such as {"model": "gpt-5"} of model=gpt-5/part-0.parquet."""
    found: dict[str, str | None] = {}
    for folder in expand(path).parts[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name in _PARTITIONS:
            found[name] = None if value == _NULL_PARTITION else urllib.parse.unquote(value)
    return found
