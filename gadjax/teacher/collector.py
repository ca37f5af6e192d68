"""Asks the teacher for what the ledger lacks, and turns the ledger into the Parquet that training reads."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gadjax.data.prompts import Prompt
from gadjax.data.schema import status_of
from gadjax.errors import UserError, first_line
from gadjax.files import whole_output, writing
from gadjax.teacher.budget import Budget, BudgetReached
from gadjax.teacher.client import TeacherClient, ask_many
from gadjax.teacher.ledger import Key, Ledger, LedgerEntry
from gadjax.teacher.usage import most_usage

# The published schema (`docs/algorithm.md`, section 4), then provenance, which training ignores.
SCHEMA = pa.schema(
    [
        ("content", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("teacher_response", pa.string()),
        ("category", pa.string()),
        ("id", pa.string()),
        ("model", pa.string()),
        ("created", pa.int64()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
        ("system", pa.string()),
        ("sample", pa.int32()),
        ("request_fields", pa.string()),  # JSON
    ]
)

_SYNC_SECONDS = 0.5
_ROW_GROUP = 1024


@dataclasses.dataclass(frozen=True)
class Question:
    """One request of a collection: the `sample`-th answer to a prompt, from 0."""

    prompt: Prompt
    sample: int = 0

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.prompt.id}, sample {self.sample}" if self.sample else self.prompt.id


@dataclasses.dataclass
class Collected:
    """What a run came to."""

    received: int = 0
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # name of the question -> why
    unasked: int = 0  # for want of budget


@dataclasses.dataclass
class Tally:
    """What a file of answers holds."""

    rows: int = 0
    cut: Counter[str] = dataclasses.field(default_factory=Counter)  # by finish reason
    marked: Counter[str] = dataclasses.field(default_factory=Counter)  # by finish reason

    def count(self, answer: str | None, finish_reason: str | None) -> None:
        """Counts one row."""
        self.rows += 1
        if (status := status_of(answer, finish_reason)) != "whole":
            getattr(self, status)[str(finish_reason)] += 1

    def lines(self) -> list[str]:
        """What training leaves out, in words; none where it takes all."""
        parts = []
        if self.cut:
            parts.append(f"{self.cut.total()} cut at --max_tokens ({_counts(self.cut)})")
        if self.marked:
            parts.append(f"{self.marked.total()} without an answer to learn from ({_counts(self.marked)})")
        return [f"of these, training leaves out by default: {', '.join(parts)}"] if parts else []


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def questions(prompts: Sequence[Prompt], samples: int = 1) -> list[Question]:
    """All requests of a collection: first answers to all prompts, then second ones, so that a budget's end is even."""
    return [Question(prompt, sample) for sample in range(samples) for prompt in prompts]


async def collect(
    teacher: TeacherClient,
    asked: Iterable[Question],
    ledger: Ledger,
    *,
    concurrency: int,
    budget: Budget | None = None,
    on_answer: Callable[[LedgerEntry], None] = lambda answer: None,
) -> Collected:
    """Asks what the ledger lacks, `concurrency` at a time; appends every answer as it comes.

    Where no prompt can succeed, or many in a row fail, no new request begins; those under way are waited for,
    since their answers are paid for. The same where the budget has no room for another.

    Raises:
      UserError: why no prompt can succeed, or the ledger cannot be written.
    """
    missing = [one for one in asked if key(teacher, one) not in ledger]
    result = Collected()
    spent = False

    async def ask(one: Question) -> None:
        nonlocal spent
        if spent:
            return
        content, name = one.prompt.content, key(teacher, one)
        most = most_usage(content, teacher.system, teacher.sampling.max_tokens)
        account = budget.account(name, most, teacher.stop) if budget else None
        try:
            answer = await teacher.ask(content, one.sample, account)
        except BudgetReached:
            spent = True
            return
        ledger.append(name, answer, question(teacher, one))
        if account:
            account.answered()
        result.received += 1
        on_answer(answer)

    syncing = asyncio.create_task(_sync_often(ledger, teacher.stop))
    try:
        failures = await ask_many(teacher, missing, ask, concurrency=concurrency)
        result.failures = {one.name: reason for one, reason in failures}
        if syncing.done():
            syncing.result()  # raises the disk's error
    finally:
        syncing.cancel()
        ledger.sync()
    if spent:
        result.unasked = len(missing) - result.received - len(result.failures)
    return result


async def _sync_often(ledger: Ledger, stop: asyncio.Event) -> None:
    try:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            ledger.sync()
    except UserError:
        stop.set()
        raise


def key(teacher: TeacherClient, asked: Question) -> Key:
    """Where the ledger keeps the answer."""
    return Key(asked.prompt.id, teacher.fingerprint(asked.prompt.content, asked.sample), asked.sample)


def question(teacher: TeacherClient, asked: Question) -> dict[str, Any]:
    """What is asked, and how: fields of the answer's row."""
    prompt = asked.prompt
    fields = {"content": prompt.content, "category": prompt.category, "model": teacher.name, "system": teacher.system}
    more = {"request_fields": json.dumps(teacher.fields, sort_keys=True)} if teacher.fields else {}
    return fields | dataclasses.asdict(teacher.sampling_of(asked.sample)) | more


def write_parquet(path: pathlib.Path, teacher: TeacherClient, asked: Sequence[Question], ledger: Ledger) -> Tally:
    """Writes every answer of the ledger, a whole file or none; says what they are.

    First the answered questions, in their order, then the others in the order of arrival: answers to prompts of
    earlier runs, or to these with other settings. Without any answer no file is written.

    Raises:
      UserError: the file cannot be written, or holds more rows than the ledger.
    """
    check_complete(path, ledger)
    known = {key(teacher, one): one for one in asked}
    names = [name for name in known if name in ledger] + [name for name in ledger if name not in known]
    tally = Tally()
    if not names:
        return tally
    with whole_output(path) as partial, writing(path), pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(names), _ROW_GROUP):
            rows = []
            for name in names[start : start + _ROW_GROUP]:
                row = ledger[name]
                row |= {"teacher_response": row["text"], "sample": name.sample}
                tally.count(row["text"], row["finish_reason"])
                # A category or a --model_name may be another by now.
                rows.append(row | question(teacher, known[name]) if name in known else row)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return tally


def check_complete(path: pathlib.Path, ledger: Ledger) -> None:
    """Refuses a Parquet file that the ledger cannot replace without a loss."""
    if not path.exists():
        return
    try:
        rows = pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--out={path}: there is another file ({first_line(error)}); give another name") from None
    if rows > len(ledger):
        raise UserError(
            f"--out={path} holds {rows} rows, but {ledger.path} only {len(ledger)} answers; mend the ledger, or give "
            "another name"
        )
