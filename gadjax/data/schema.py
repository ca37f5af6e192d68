"""Reads a teacher's answers from files of any known format, checks them row by row, and keeps them as Arrow columns.

gadjax's own schema is that of the published LMSYS-Chat-GPT-5-Chat-Response (docs/algorithm.md, section 4). Rows of
other formats (`gadjax.data.formats`) become rows of it. Columns that training does not need are not read. Each file is
read alone, not through `pyarrow.dataset`, so that files may differ in kind, and an error names the file.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gadjax.data import row_columns, sources, tfds
from gadjax.data.chats import CUT_REASONS, MARKED_REASONS, Messages
from gadjax.data.dataset_name import HUB, TFDS, parse
from gadjax.data.formats import ANY, Format, Recogniser
from gadjax.data.row_columns import MORE, Part
from gadjax.data.table_files import filled, has_columns, open_columns, read_text_rows, rows_of
from gadjax.errors import UserError


class Taken(NamedTuple):
    """What some rows were taken for."""

    label: str  # the format's name and columns
    rows: int
    files: int  # that have such rows


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """All rows of the files, in the order of the files; a row is a chat that ends with a user turn, and its answer.

    Attributes:
      files: names of the files.
      taken_for: what the rows were taken for, an entry for each different format, in the order of the rows.
      cut: bool [rows], the API stopped the answer at a token limit.
      marked: bool [rows], there is no answer to learn from: it was filtered, refused, failed or a tool call, or is
        empty because the limit was reached before it began.
      models: the teachers' names in the column `model`, each once; empty if the files do not have it.
    """

    files: tuple[str, ...]
    taken_for: tuple[Taken, ...]
    cut: np.ndarray
    marked: np.ndarray
    models: tuple[str, ...]
    _file_ends: np.ndarray  # int64 [files], number of rows up to the end of each file
    _places: tuple[list[str] | None, ...]  # of the rows of each file; None: `FILE: row N`
    _offsets: np.ndarray  # int64 [rows + 1], into the messages
    _roles: pa.LargeStringArray  # [messages]
    _contents: pa.LargeStringArray  # [messages]
    _answers: pa.LargeStringArray  # [rows]
    _ids: pa.LargeStringArray  # [rows]

    def __len__(self) -> int:
        return len(self._answers)

    def messages(self, index: int) -> Messages:
        """The chat of a row."""
        turns = range(self._offsets[index], self._offsets[index + 1])
        return [{"role": self._roles[i].as_py(), "content": self._contents[i].as_py()} for i in turns]

    def answer(self, index: int) -> str:
        """The teacher's answer of a row."""
        return self._answers[index].as_py() or ""

    def id(self, index: int) -> str | None:
        """The row's own `id`, if it has one that is text or a whole number; a `UserError` if it is not UTF-8."""
        try:
            return self._ids[index].as_py()
        except UnicodeDecodeError:
            raise UserError(f"{self.where(index)}: text that is not valid UTF-8 (a lone surrogate?)") from None

    def where(self, index: int) -> str:
        """The place of a row for messages: `FILE:LINE`, or `FILE: row N`, counted from 0 in each file."""
        file = int(np.searchsorted(self._file_ends, index, side="right"))
        row = index - (int(self._file_ends[file - 1]) if file else 0)
        places = self._places[file]
        return places[row] if places else f"{self.files[file]}: row {row}"


def read_rows(
    paths: str | os.PathLike | Sequence[str | os.PathLike], columns: str = "", *, optional: bool = False
) -> Rows:
    """Reads and checks a teacher's answers.

    Args:
      paths: a file, a glob, a directory, a dataset (`hf:OWNER/NAME/SPLIT` of the hub, `tfds:NAME/SPLIT`), or a sequence
        of these (`gadjax.data.sources`). The files of a glob or a directory are read in the order of their names.
      columns: names the columns, PROMPT,ANSWER, or one of chats that end with the answer; "" tells them by their names
        (`gadjax.data.formats`).
      optional: whether rows may lack the columns that are named, and are told by their own then.

    Raises:
      UserError: names the file, the row (from 0) or line (from 1), and the reason.
    """
    recogniser = Recogniser(columns, optional=optional)
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        entry = os.fspath(path)
        if entry.endswith(sources.LEDGER):
            raise UserError(
                f"{entry}: the ledger of a collection; gadjax.collect writes the answers beside it (--out): give that "
                "file"
            )
        if entry.startswith(HUB) and (field := parse(entry).field):
            raise UserError(
                f"{entry}: rows of a teacher have columns of fixed names: leave out :{field}, or name the columns as "
                "--config.data.columns=PROMPT,ANSWER"
            )
    parts = [_read_file(file, recogniser) for file in sources.find(paths)]
    joined = {
        name: pa.concat_arrays([getattr(part, name) for part in parts])
        for name in ("roles", "contents", "answers", "finish_reasons", "models", "ids")
    }
    lengths = np.concatenate([part.lengths for part in parts])
    reasons, models = joined.pop("finish_reasons"), joined.pop("models")
    cut = row_columns.is_in(reasons, CUT_REASONS)
    return Rows(
        files=tuple(part.file for part in parts),
        taken_for=_taken(parts),
        cut=cut,
        marked=row_columns.is_in(reasons, MARKED_REASONS) | (cut & row_columns.blank(joined["answers"])),
        models=tuple(name for name in models.unique().to_pylist() if name),
        _file_ends=np.cumsum([len(part.lengths) for part in parts], dtype=np.int64),
        _places=tuple(part.places for part in parts),
        _offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        **{f"_{name}": column for name, column in joined.items()},
    )


def _taken(parts: Sequence[Part]) -> tuple[Taken, ...]:
    counts: dict[Format, list[int]] = defaultdict(list)
    for part in parts:
        for form, rows in part.taken_for.items():
            counts[form].append(rows)
    return tuple(Taken(form.label, sum(rows), len(rows)) for form, rows in counts.items())


def _read_file(file: str, recogniser: Recogniser) -> Part:
    """The checked rows of one file or TFDS dataset."""
    if file.startswith(TFDS):
        table = tfds.read_table(file, (*ANY, *MORE, *(recogniser.named.needs if recogniser.named else ())))
        form = recogniser.of(table.schema.names, filled(table.schema), file)
        row_columns.check_types(file, table.schema, form)
        return _of_table(file, table, form)
    if not has_columns(file):
        return row_columns.from_rows(file, read_text_rows(file), recogniser.of_row)
    with open_columns(file) as opened:
        form = recogniser.of(opened.schema.names, filled(opened.schema), file)
        row_columns.check_types(file, opened.schema, form)
        more = [name for name in MORE if opened.schema.names.count(name) == 1]
        table = opened.read((*form.columns, *more))
        return _of_table(file, table, form)


def _of_table(file: str, table: pa.Table, form: Format) -> Part:
    """The checked rows of a table, whose types `row_columns.check_types` has seen."""
    if not table.num_rows:
        raise UserError(f"{file}: the file has no rows")
    if row_columns.is_vectorised(form, table.schema):
        return row_columns.from_table(file, table)
    return row_columns.from_rows(file, rows_of(file, table), lambda row, place: form)
