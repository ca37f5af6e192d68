"""The checked chats and answers of one file, as Arrow columns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gadjax.data.chats import CUT_REASONS, MARKED_REASONS, ROLES, encodes
from gadjax.data.formats import TEACHER, Format, Row
from gadjax.data.table_files import Placed
from gadjax.errors import UserError

MORE = ("finish_reason", "model", "id")  # columns beside those of a format
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
# A column of nulls alone has type null; the check of its rows says what is wrong with it.
_TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.null())


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The rows of one file, checked.

    Attributes:
      file: its name.
      taken_for: the number of rows of each format.
      places: of the rows, for messages; None: `FILE: row N`.
      lengths: int64 [rows], the number of a chat's turns.
      roles, contents: [turns].
      answers, finish_reasons, models, ids: [rows].
    """

    file: str
    taken_for: dict[Format, int]
    places: list[str] | None
    lengths: np.ndarray
    roles: pa.LargeStringArray
    contents: pa.LargeStringArray
    answers: pa.LargeStringArray
    finish_reasons: pa.LargeStringArray
    models: pa.LargeStringArray
    ids: pa.LargeStringArray

    def where(self, row: int) -> str:
        """The place of a row, for messages."""
        return self.places[row] if self.places else f"{self.file}: row {row}"


def is_vectorised(form: Format, schema: pa.Schema) -> bool:
    """Whether a table of this format is read by `from_table`, and not row by row.

    That is so for gadjax's own columns, unless the content of turns is a list of parts.
    """
    if form is not TEACHER:
        return False
    content = schema.field("content").type
    if not isinstance(content, _LISTS) or not pa.types.is_struct(content.value_type):
        return True
    index = content.value_type.get_field_index("content")
    return index < 0 or not isinstance(content.value_type.field(index).type, _LISTS)


def check_types(file: str, schema: pa.Schema, form: Format) -> None:
    """Refuses columns whose types are not those of gadjax's own.

    Raises:
      UserError: names the file and the column.
    """
    for name in (*form.needs, MORE[0]):
        if schema.names.count(name) > 1:
            raise UserError(f"{file}: column `{name}` is there {schema.names.count(name)} times")
    if is_vectorised(form, schema):
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
    # Why an answer ended decides whether it is learnt from: a guess could train on answers that were cut.
    for name in (*(("teacher_response",) if form is TEACHER else ()), MORE[0]):
        if name in schema.names and not _is_text(schema.field(name).type):
            raise UserError(f"{file}: column `{name}` has type {schema.field(name).type}; expected string")


def from_table(file: str, table: pa.Table) -> Part:
    """The rows of a table with gadjax's own columns, whose types `check_types` has seen.

    Raises:
      UserError: names the file, the row (from 0) and the reason.
    """
    chats = table["content"]
    lengths = np.asarray(pc.fill_null(pc.list_value_length(chats), 0)).astype(np.int64)
    turns = pc.list_flatten(chats)
    nulls = pa.nulls(table.num_rows, pa.large_string())
    part = Part(
        file,
        {TEACHER: table.num_rows},
        None,
        lengths,
        roles=_strings(pc.struct_field(turns, "role")),
        contents=_strings(pc.struct_field(turns, "content")),
        answers=_strings(table["teacher_response"]),
        finish_reasons=_strings(table["finish_reason"]) if "finish_reason" in table.column_names else nulls,
        models=_strings(table["model"]) if _has(table.schema, "model", _is_text) else nulls,
        ids=_strings(table["id"]) if _has(table.schema, "id", _is_id) else nulls,
    )
    _reject(part, pc.is_null(chats), "`content` is null; every row needs a chat")
    for name in ("roles", "contents", "answers", "finish_reasons", "models"):
        _check_unicode(part, name)
    _check_rows(part)
    return part


def from_rows(file: str, rows: Iterable[Placed], format_of: Callable[[Row, str], Format]) -> Part:
    """The rows of a file, each in a format of its own. A row with several answers becomes several.

    Args:
      file: its name.
      rows: with their places.
      format_of: gives the format of a row, whose place is for messages.

    Raises:
      UserError: names the row and the reason.
    """
    taken: Counter[Format] = Counter()
    places: list[str] = []
    lengths: list[int] = []
    columns: dict[str, list[str | None]] = {
        name: [] for name in ("roles", "contents", "answers", "finish_reasons", "models", "ids")
    }
    roles, contents, answers, reasons, models, ids = columns.values()
    for place, row in rows:
        form = format_of(row, place)
        chat, found = form.split(row, place)
        reason, model, own = row.get("finish_reason"), row.get("model"), row.get("id")
        if reason is not None and not isinstance(reason, str):
            raise UserError(f"{place}: `finish_reason` is {type(reason).__name__}; expected text")
        for answer in found:
            taken[form] += 1
            places.append(place)
            lengths.append(len(chat))
            for turn in chat:
                roles.append(turn["role"])
                contents.append(turn["content"])
            answers.append(answer)
            reasons.append(reason)
            models.append(model if isinstance(model, str) else None)
            ids.append(str(own) if isinstance(own, (int, str)) and not isinstance(own, bool) else None)
    turns = np.array(lengths, np.int64)
    arrays = {name: _encoded(name, values, turns, places) for name, values in columns.items()}
    part = Part(file, dict(taken), places, turns, **arrays)
    _check_rows(part)
    return part


def _encoded(name: str, values: list[str | None], lengths: np.ndarray, places: list[str]) -> pa.LargeStringArray:
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError:
        bad = next(i for i, text in enumerate(values) if text is not None and not encodes(text))
        row = np.repeat(np.arange(len(lengths)), lengths)[bad] if name in ("roles", "contents") else bad
        raise UserError(f"{places[row]}: text in {name} holds half of a surrogate pair; remove it") from None


def _check_rows(part: Part) -> None:
    if not len(part.lengths):
        raise UserError(f"{part.file}: the file has no rows")
    rows_of_turns = np.repeat(np.arange(len(part.lengths)), part.lengths)
    forms = list(part.taken_for)
    chat = f"the chat in `{forms[0].prompt}`" if len(forms) == 1 else "the chat"
    _reject(part, part.lengths == 0, f"{chat} is empty" + ("" if forms == [TEACHER] else " before the answer"))
    _reject(part, pc.is_null(part.roles), "a turn of the chat has a null role", rows_of_turns)
    _reject(part, pc.is_null(part.contents), "a turn of the chat has null content", rows_of_turns)
    unknown = ~is_in(part.roles, ROLES)
    if unknown.any():
        role = part.roles[int(np.argmax(unknown))].as_py()
        _reject(part, unknown, f"unknown role {role!r}; expected one of {', '.join(ROLES)}", rows_of_turns)
    excused = is_in(part.finish_reasons, CUT_REASONS + MARKED_REASONS)
    missing = np.asarray(pc.is_null(part.answers)) & ~excused
    if len(forms) == 1 and forms[0].answer is None:  # before the rule of a chat's end, which would say less
        _reject(part, missing, forms[0].no_answer + _others(missing))
    last = np.cumsum(part.lengths) - 1
    before = "" if forms == [TEACHER] else " before the answer"
    for role in ("assistant", "system"):
        ends = is_in(part.roles, (role,))[last]
        _reject(part, ends, f"the chat ends with the {role}{before}; it must end with a user turn")
    _reject(part, missing, (forms[0].no_answer if len(forms) == 1 else "there is no answer") + _others(missing))
    answer = f"`{forms[0].answer}`" if len(forms) == 1 and forms[0].answer else "the answer"
    _reject(part, blank(part.answers) & ~excused, f"{answer} is empty or only white space")


def _others(bad: np.ndarray) -> str:
    """How many more rows are so, to leave out with the first."""
    more = int(bad.sum()) - 1
    return f", as in {more} other row{'s' * (more > 1)}" if more > 0 else ""


def _check_unicode(part: Part, name: str) -> None:
    """Rejects text that is not UTF-8, which Parquet does not check, before it fails in the middle of a run."""
    column = getattr(part, name)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        row = next((i for i in range(len(column)) if not _decodes(column[i])), 0)
        if name in ("roles", "contents"):
            row = int(np.repeat(np.arange(len(part.lengths)), part.lengths)[row])
        raise UserError(f"{part.where(row)}: text in {name} is not valid UTF-8 (a lone surrogate?)") from error


def _decodes(scalar: pa.LargeStringScalar) -> bool:
    try:
        scalar.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _reject(
    part: Part, bad: pa.Array | pa.ChunkedArray | np.ndarray, reason: str, rows: np.ndarray | None = None
) -> None:
    """Raises a `UserError` that names the row of the first True in `bad`, whose entry i belongs to row `rows[i]`."""
    bad = np.asarray(bad)
    if bad.any():
        first = int(np.argmax(bad))
        raise UserError(f"{part.where(first if rows is None else int(rows[first]))}: {reason}")


def _strings(column: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """A column of any string type as one array, with 64-bit offsets, which fit any size."""
    column = column.cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def is_in(column: pa.LargeStringArray, values: Sequence[str]) -> np.ndarray:
    """bool [rows]: the text is one of the values."""
    return np.asarray(pc.is_in(column, value_set=pa.array(values, pa.large_string())))


def blank(column: pa.LargeStringArray) -> np.ndarray:
    """bool [rows]: the text is null, empty or only white space."""
    return np.asarray(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))


def _has(schema: pa.Schema, name: str, fits: Callable[[pa.DataType], bool]) -> bool:
    """Whether there is one column of this name, of a fitting type."""
    return schema.names.count(name) == 1 and fits(schema.field(name).type)


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind)


def _is_text(kind: pa.DataType) -> bool:
    return (kind.value_type if pa.types.is_dictionary(kind) else kind) in _TEXTS
