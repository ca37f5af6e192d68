"""The ledger: an append-only file of every answer received, so that none is asked, and paid for, twice.

A line holds the answer with all that it answers, so that it is a row of the Parquet without the file of prompts.
Where there is a budget, a line before each attempt says what it may cost, so that an answer that was made but never
arrived, for a time-out or a kill, is counted as spent.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from gadjax.append_log import AppendLog
from gadjax.teacher.usage import NOTHING, Usage, usage_of

BATCH = "batch"  # the field of an answer that came by the Batch API, at its price


class Key(NamedTuple):
    """What an answer answers."""

    id: str  # the prompt's
    fingerprint: str  # of the request
    sample: int = 0  # of the answers to one prompt


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """What the teacher said to one prompt."""

    text: str
    finish_reason: str | None
    created: int  # Unix seconds
    prompt_tokens: int | None
    completion_tokens: int | None

    @property
    def tokens(self) -> int | None:
        """In and out, where the API said so."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """A JSONL file of answers, by key in the order of arrival; a context manager that holds the file's lock.

    An appended line has left the process at once and survives its death; `sync` makes lines survive the
    machine's. Only places of answers are kept in memory, not their text.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """
        Args:
          path: of the ledger; made where it is absent.

        Raises:
          UserError: the file cannot be opened, another process holds it, or a line other than a torn last
            one is damaged.
        """
        self._log = AppendLog(path, "gadjax.collect")
        self.path = self._log.path
        self.used = {False: NOTHING, True: NOTHING}  # by all answers; True: by the Batch API
        self._open: defaultdict[Key, list[Usage]] = defaultdict(list)  # attempts without a known end
        self._begun: set[Key] = set()  # attempts of this process
        self._places: dict[Key, int] = {}
        self._at_risk = [0, 0]
        try:
            for place, row in self._log.read(parse_line):
                self._count(place, row)
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The fields of the answer and of its question."""
        return json.loads(self._log.line(self._places[key]))

    @property
    def at_risk(self) -> Usage:
        """At most taken by attempts whose end is not known: under way, or lost on the way back or by a kill."""
        return Usage(*self._at_risk)

    @property
    def attempts_open(self) -> int:
        """Attempts whose end is not known."""
        return sum(map(len, self._open.values()))

    def append(self, key: Key, answer: LedgerEntry, question: dict[str, Any]) -> None:
        """Writes one answer with what was asked, and how; it has left the process when this returns.

        Raises:
          UserError: the file cannot be written.
        """
        row = key._asdict() | dataclasses.asdict(answer) | question
        if key in self._begun:
            self._begun.remove(key)
            row["ends_attempt"] = True
        self._count_answer(key, row, self._write(row))

    def begin(self, key: Key, most: Usage) -> None:
        """Writes that an attempt begins, and what it may take at most."""
        self.lose(key, most)
        self._begun.add(key)

    def lose(self, key: Key, most: Usage) -> None:
        """Writes what an attempt may have taken at most, of which no answer will come: none ends it."""
        self._write(key._asdict() | {"attempt": "begun", "most": most})
        self._count_attempt(key, most)

    def dismiss(self, key: Key) -> None:
        """Writes that the last attempt came to nothing, for which the API takes no money."""
        self._write(key._asdict() | {"attempt": "failed"})
        self._begun.discard(key)
        self._close(key)

    def sync(self) -> None:
        """Puts what was appended on the disk; may take milliseconds."""
        self._log.sync()

    def _write(self, row: dict[str, Any]) -> int:
        return self._log.append(json.dumps(row))

    def _count(self, place: int, row: dict[str, Any]) -> None:
        """Takes a line of the file."""
        key = key_of(row)
        match row.get("attempt"):
            case None:
                self._count_answer(key, row, place)
            case "begun":
                self._count_attempt(key, Usage(*row["most"]))
            case _:
                self._close(key)

    def _count_answer(self, key: Key, row: dict[str, Any], start: int) -> None:
        self._places.setdefault(key, start)
        if row.get("ends_attempt"):
            self._close(key)
        batch = bool(row.get(BATCH))
        self.used[batch] += usage_of(row)

    def _count_attempt(self, key: Key, most: Usage) -> None:
        self._open[key].append(most)
        self._at_risk = [a + b for a, b in zip(self._at_risk, most, strict=True)]

    def _close(self, key: Key) -> None:
        """Forgets the last attempt: attempts at one key follow each other, and the one that ended began last."""
        if attempts := self._open.get(key):
            self._at_risk = [a - b for a, b in zip(self._at_risk, attempts.pop(), strict=True)]
            if not attempts:
                del self._open[key]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The fields of a line of a ledger; None where it holds neither a whole answer nor an attempt."""
    try:
        row: Any = json.loads(line)
        key_of(row)
        if "attempt" in row:
            whole = row["attempt"] == "failed" or [type(n) for n in row["most"]] == [int, int]
        else:
            whole = "content" in row and all(field.name in row for field in dataclasses.fields(LedgerEntry))
        return row if whole else None
    except (ValueError, KeyError, TypeError):
        return None


def key_of(row: dict[str, Any]) -> Key:
    """The key of a line's fields; lines of before there were samples have none."""
    return Key(str(row["id"]), str(row["fingerprint"]), int(row.get("sample", 0)))
