"""The ledger: an append-only file of every answer received, so that no request is made, and paid for, twice.

A line holds an answer and its question, so it becomes a row of the Parquet without the file of prompts. With a budget,
a line before each attempt says what the attempt may cost. So the cost of an answer that never arrived, because of a
time-out or a kill, counts as spent.

A database such as SQLite would keep answers as safely. Lines of JSON can be read, searched and mended by hand.
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

BATCH = "batch"  # field of an answer from the Batch API, which has a price of its own


class Key(NamedTuple):
    """Names the question of an answer."""

    id: str  # of the prompt
    fingerprint: str  # of the request
    sample: int = 0  # number of the answer to this prompt


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """The teacher's answer to one prompt."""

    text: str
    finish_reason: str | None
    created: int  # Unix seconds
    prompt_tokens: int | None
    completion_tokens: int | None

    @property
    def tokens(self) -> int | None:
        """Tokens in and out, if the API said so."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """The answers of a JSONL file, by key in the order of arrival; a context manager that holds the file's lock.

    An appended line survives the death of the process, and after `sync` that of the machine. Memory holds where
    answers stand in the file, not their text.

    Attributes:
      used: tokens of all answers, by whether the Batch API gave them.
      at_risk: upper bound on the tokens of attempts whose end is unknown: in flight, or lost by a time-out or a kill.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """
        Args:
          path: of the ledger; made if it is absent.

        Raises:
          UserError: the file cannot be opened, another process holds it, or a line is damaged. A last line torn by a
            kill is cut off instead.
        """
        self._log = AppendLog(path, "gadjax.collect")
        self.path = self._log.path
        self.used = {False: NOTHING, True: NOTHING}
        self.at_risk = NOTHING
        self._open: defaultdict[Key, list[Usage]] = defaultdict(list)  # attempts whose end is unknown
        self._begun: set[Key] = set()  # attempts of this process
        self._places: dict[Key, int] = {}
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
        """The fields of an answer and of its question."""
        return json.loads(self._log.line(self._places[key]))

    @property
    def attempts_open(self) -> int:
        """Number of attempts whose end is unknown."""
        return sum(map(len, self._open.values()))

    def append(self, key: Key, answer: LedgerEntry, question: dict[str, Any]) -> None:
        """Writes an answer with the fields of its question; raises a `UserError` if the file cannot be written."""
        row = key._asdict() | dataclasses.asdict(answer) | question
        if key in self._begun:
            self._begun.remove(key)
            row["ends_attempt"] = True
        self._count_answer(key, row, self._write(row))

    def begin(self, key: Key, most: Usage) -> None:
        """Writes that an attempt begins, which takes at most `most`."""
        self.lose(key, most)
        self._begun.add(key)

    def lose(self, key: Key, most: Usage) -> None:
        """Writes that an attempt took at most `most`, and that no answer of it will come."""
        self._write(key._asdict() | {"attempt": "begun", "most": most})
        self._count_attempt(key, most)

    def dismiss(self, key: Key) -> None:
        """Writes that the last attempt failed, and that it costs nothing."""
        self._write(key._asdict() | {"attempt": "failed"})
        self._begun.discard(key)
        self._close(key)

    def sync(self) -> None:
        """Waits until all lines are on the disk; takes milliseconds."""
        self._log.sync()

    def _write(self, row: dict[str, Any]) -> int:
        return self._log.append(json.dumps(row))

    def _count(self, place: int, row: dict[str, Any]) -> None:
        """Counts a line of the file."""
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
        self.used[bool(row.get(BATCH))] += usage_of(row)

    def _count_attempt(self, key: Key, most: Usage) -> None:
        self._open[key].append(most)
        self.at_risk += most

    def _close(self, key: Key) -> None:
        """Forgets the last attempt at a key: attempts at one key never overlap."""
        if attempts := self._open.get(key):
            most = attempts.pop()
            self.at_risk += Usage(-most.prompt, -most.completion)
            if not attempts:
                del self._open[key]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The fields of a ledger's line, or None if it is neither a whole answer nor an attempt."""
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
    """The key of a line's fields; early ledgers have no `sample`."""
    return Key(str(row["id"]), str(row["fingerprint"]), int(row.get("sample", 0)))
