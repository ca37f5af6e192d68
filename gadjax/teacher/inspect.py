"""Describes a file of answers in lines for a terminal (`gadjax.collect --inspect`)."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from gadjax.data.chats import Messages, status_of
from gadjax.data.parquet import check_columns, open_parquet
from gadjax.errors import UserError
from gadjax.teacher.ledger import parse_line

_COLUMNS = (
    "content", "teacher_response", "category", "id", "model", "finish_reason", "prompt_tokens", "completion_tokens",
    "temperature", "system", "sample",
)  # fmt: skip
_NAMED = ("finish_reason", "category", "model", "temperature", "system", "sample")
_LENGTHS = ("prompt characters", "answer characters", "prompt tokens", "answer tokens")
_PERCENTILES = (0, 5, 50, 95, 100)
_COUNTED = 12  # values of a column that are listed; the others are summed up
_NAME_WIDTH = 60
_TEXT_WIDTH = 300


def inspect(path: pathlib.Path, *, shown_rows: int = 3) -> Iterator[str]:
    """Lines about a teacher's Parquet, or about a ledger of `gadjax.collect`.

    They hold no control characters, so that a terminal shows them as they are.

    Args:
      path: ends in .parquet or .jsonl.
      shown_rows: number of rows to show, spread over the file.

    Raises:
      UserError: the file cannot be read, or is neither.
    """
    readers = {".parquet": _parquet_rows, ".jsonl": _ledger_rows}
    if path.suffix not in readers:
        raise UserError(f"--inspect={path}: expected a teacher's .parquet, or a .ledger.jsonl of gadjax.collect")
    if not path.is_file():
        raise UserError(f"--inspect={path}: no such file")
    counts = _Counts()
    for row in readers[path.suffix](path):
        counts.add(row)
    yield f"{visible(str(path), 1000)}: {counts.rows} answers"
    if not counts.rows:
        return
    yield from counts.lines()
    if shown_rows:
        wanted = set(np.linspace(0, counts.rows - 1, min(shown_rows, counts.rows)).round().astype(int).tolist())
        answers = (row for row in readers[path.suffix](path) if "attempt" not in row)
        for number, row in enumerate(answers):
            if number in wanted:
                yield ""
                yield from _show(number, row)


def visible(text: str, width: int) -> str:
    """The text on one line of at most `width` characters, without those that a terminal would act on or hide.

    Control and format characters (some change the direction of text), odd spaces and lone surrogates are escaped.
    """
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text[: width + 1]
    )
    return line if len(line) <= width else line[: width - 3] + "..."


class _Counts:
    """Counts of the rows of a file; `rows` is the number of answers."""

    def __init__(self) -> None:
        self.rows = self._attempts = 0
        self._status: Counter[str] = Counter()
        self._named: dict[str, Counter[str]] = {name: Counter() for name in _NAMED}
        self._lengths: dict[str, list[int]] = {name: [] for name in _LENGTHS}
        self._prompts: Counter[bytes] = Counter()  # by digest, as the next two
        self._pairs: Counter[bytes] = Counter()
        self._answers: Counter[bytes] = Counter()

    def add(self, row: dict[str, Any]) -> None:
        """Counts a row, which may be a ledger's line about an attempt."""
        if "attempt" in row:
            self._attempts += {"begun": 1, "failed": -1}[row["attempt"]]
            return
        self._attempts -= bool(row.get("ends_attempt"))
        self.rows += 1
        answer, content = row["teacher_response"] or "", row["content"] or []
        self._status[status_of(answer, row.get("finish_reason"))] += 1
        for name, counter in self._named.items():
            if (value := row.get(name)) is not None:
                counter[f"{value:g}" if isinstance(value, float) else str(value)] += 1
        self._lengths["prompt characters"].append(sum(len(turn["content"] or "") for turn in content))
        self._lengths["answer characters"].append(len(answer))
        for name, field in (("prompt tokens", "prompt_tokens"), ("answer tokens", "completion_tokens")):
            if (value := row.get(field)) is not None:
                self._lengths[name].append(value)
        prompt, text = _digest(content), _digest(answer)
        self._prompts[prompt] += 1
        self._pairs[prompt + text] += 1
        if answer.strip():
            self._answers[text] += 1

    def lines(self) -> Iterator[str]:
        """The counts, in words."""
        cut, marked = self._status["cut"], self._status["marked"]
        yield f"whole: {self._status['whole']}, cut at a token limit: {cut}, without an answer to learn from: {marked}"
        if self._attempts:
            yield f"attempts of which no answer came, but which may have to be paid for: {self._attempts}"
        for name, counter in self._named.items():
            if counter and not (name == "sample" and len(counter) == 1):
                yield f"{name}: {_listed(counter, self.rows)}"
        yield f"{'':20}" + "".join(f"{head:>9}" for head in ("least", "5 %", "median", "95 %", "most", "mean"))
        for name, values in self._lengths.items():
            if values:
                figures = [*np.percentile(values, _PERCENTILES), np.mean(values)]
                yield f"{name:20}" + "".join(f"{figure:9.0f}" for figure in figures)
        repeated = self.rows - len(self._prompts)
        yield f"prompts: {len(self._prompts)} different, {repeated} rows repeat the prompt of another"
        again, pairs = self._answers.total() - len(self._answers), self.rows - len(self._pairs)
        yield f"answers: {again} rows repeat the text of another, {pairs} of them its prompt too (empty ones aside)"


def _listed(counter: Counter[str], rows: int) -> str:
    parts = [f"{visible(name, _NAME_WIDTH)} {count}" for name, count in counter.most_common(_COUNTED)]
    if len(counter) > _COUNTED:
        rest = counter.total() - sum(count for _, count in counter.most_common(_COUNTED))
        parts.append(f"{len(counter) - _COUNTED} others {rest}")
    if none := rows - counter.total():
        parts.append(f"(none) {none}")
    return ", ".join(parts)


def _show(number: int, row: dict[str, Any]) -> Iterator[str]:
    fields = ("id", "sample", "category", "finish_reason")
    named = [f"{name} {visible(str(row[name]), _NAME_WIDTH)}" for name in fields if row.get(name) is not None]
    yield f"row {number}: {', '.join(named)}"
    for turn in row["content"] or []:
        yield f"  {visible(str(turn['role']), 20)}: {visible(turn['content'] or '', _TEXT_WIDTH)}"
    yield f"  teacher: {visible(row['teacher_response'] or '', _TEXT_WIDTH)}"


def _digest(value: str | Messages) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).digest()


def _parquet_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    try:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            check_columns(path, names, ("content", "teacher_response"))
            for batch in file.iter_batches(columns=[name for name in _COLUMNS if name in names]):
                yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: text that is not valid UTF-8 ({error.reason})") from None


def _ledger_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger, unlocked, without a last line that another process is still writing."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = parse_line(line)
            if row is None:
                if not line.endswith(b"\n"):
                    return
                raise UserError(f"{path}:{number}: not a line of a ledger of gadjax.collect")
            yield row if "attempt" in row else row | {"teacher_response": row["text"]}
