"""Asks the teacher for what the ledger lacks, and writes the ledger as the Parquet that training reads."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gadjax.data.chats import status_of
from gadjax.data.heldout import heldout_path, rank
from gadjax.data.prompts import Prompt
from gadjax.errors import UserError, first_line
from gadjax.files import whole_output, writing
from gadjax.teacher.budget import Account, Budget, BudgetReached
from gadjax.teacher.client import RowFailed, TeacherClient
from gadjax.teacher.ledger import Key, Ledger, LedgerEntry
from gadjax.teacher.usage import most_usage

# The published schema (docs/algorithm.md, section 4), then provenance, which training ignores.
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

_LEAST_PATIENCE = 8  # questions that fail in a row before `ask_many` gives up, at least
_SYNC_SECONDS = 0.5
_ROW_GROUP = 1024


Q = TypeVar("Q")


@dataclasses.dataclass(frozen=True)
class Question:
    """One request of a collection: answer number `sample` to a prompt, from 0."""

    prompt: Prompt
    sample: int = 0

    @property
    def name(self) -> str:
        """The question's name in messages."""
        return f"{self.prompt.id}, sample {self.sample}" if self.sample else self.prompt.id


@dataclasses.dataclass
class Collected:
    """The outcome of a collection."""

    received: int = 0
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # name of the question -> reason
    unasked: int = 0  # questions that the budget had no room for


@dataclasses.dataclass
class Tally:
    """Counts of a file of answers."""

    rows: int = 0
    cut: Counter[str] = dataclasses.field(default_factory=Counter)  # by finish reason
    marked: Counter[str] = dataclasses.field(default_factory=Counter)  # by finish reason

    def count(self, answer: str | None, finish_reason: str | None) -> None:
        """Counts one row."""
        self.rows += 1
        if (status := status_of(answer, finish_reason)) != "whole":
            getattr(self, status)[str(finish_reason)] += 1

    def lines(self) -> list[str]:
        """A line about what training leaves out, or no line if it takes all."""
        parts = []
        if self.cut:
            parts.append(f"{self.cut.total()} cut at --max_tokens ({_counts(self.cut)})")
        if self.marked:
            parts.append(f"{self.marked.total()} without an answer to learn from ({_counts(self.marked)})")
        return [f"of these, training leaves out by default: {', '.join(parts)}"] if parts else []


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def questions(prompts: Sequence[Prompt], samples: int = 1) -> list[Question]:
    """All requests of a collection: first answers to all prompts, then second ones, so that a budget ends evenly."""
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
    """Asks what the ledger lacks, `concurrency` questions at a time, and appends every answer as it comes.

    If no prompt can succeed, if many in a row fail, or if the budget has no room, no other request begins. The requests
    under way are waited for, because their answers are paid for.

    Raises:
      UserError: no prompt can succeed, or the ledger cannot be written.
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
        account = Account(budget, name, most, teacher.stop) if budget else None
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


async def ask_many(
    client: TeacherClient,
    questions: Sequence[Q],
    ask: Callable[[Q], Awaitable[None]],
    *,
    concurrency: int,
    remedy: str = "",
) -> list[tuple[Q, str]]:
    """Asks every question, `concurrency` at a time, and returns those that failed, each with the reason.

    After an error of `ask`, or once `client.stop` is set, no other question begins. The questions under way are waited
    for, because their answers are paid for.

    Args:
      client: asks the questions.
      questions: in the order of asking.
      ask: asks one question through `client` and keeps its answer.
      concurrency: number of questions under way at once, at most.
      remedy: end of the error message after many failures in a row.

    Raises:
      UserError: many questions in a row failed.
      Exception: an error of `ask` other than `RowFailed`.
    """
    waiting = iter(questions)
    failures: list[tuple[Q, str]] = []
    in_a_row = 0

    async def work() -> None:
        nonlocal in_a_row
        for question in waiting:
            if client.stop.is_set():
                return
            try:
                await ask(question)
            except RowFailed as error:
                failures.append((question, str(error)))
                in_a_row += 1
                if in_a_row == max(_LEAST_PATIENCE, concurrency):
                    client.stop.set()
                    raise UserError(
                        f"{in_a_row} questions in a row to {client.model} at --base_url={client.base_url} failed, the "
                        f"last with: {error}{remedy}"
                    ) from None
            except Exception:
                client.stop.set()
                raise
            else:
                in_a_row = 0

    workers = min(concurrency, len(questions))
    ends = await asyncio.gather(*(work() for _ in range(workers)), return_exceptions=True)
    for error in ends:
        # Workers whose wait `stop` ended are cancelled.
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error
    return failures


def key(teacher: TeacherClient, asked: Question) -> Key:
    """The ledger's key of the answer to a question."""
    return Key(asked.prompt.id, teacher.fingerprint(asked.prompt.content, asked.sample), asked.sample)


def question(teacher: TeacherClient, asked: Question) -> dict[str, Any]:
    """The fields of the answer's row that say what is asked, and how."""
    prompt = asked.prompt
    fields = {"content": prompt.content, "category": prompt.category, "model": teacher.name, "system": teacher.system}
    more = {"request_fields": json.dumps(teacher.fields, sort_keys=True)} if teacher.fields else {}
    return fields | dataclasses.asdict(teacher.sampling_of(asked.sample)) | more


def write_parquet(
    path: pathlib.Path,
    teacher: TeacherClient,
    asked: Sequence[Question],
    ledger: Ledger,
    held: frozenset[float] = frozenset(),
) -> Tally:
    """Writes every answer of the ledger to a Parquet file, whole or not at all, and returns counts.

    The answers to prompts whose `gadjax.data.heldout.rank` is in `held` go to `heldout_path(path)` instead.

    Answers to `asked` come first, in its order. Answers to other prompts, or with other settings, follow in the order
    of arrival. Without an answer, no file is written.

    Raises:
      UserError: the file cannot be written, or holds more rows than the ledger.
    """
    check_complete(path, ledger)
    known = {key(teacher, one): one for one in asked}
    names = [name for name in known if name in ledger] + [name for name in ledger if name not in known]
    tally = Tally()
    sides = {path: names}
    if held:
        ranks = {name: rank(ledger[name]["content"]) for name in names}
        sides = {path: [name for name in names if ranks[name] not in held]}
        sides[heldout_path(path)] = [name for name in names if ranks[name] in held]
    for file, chosen in sides.items():
        if chosen:
            _write(file, teacher, chosen, known, ledger, tally)
        else:  # answers of an earlier run, which are on the other side now
            file.unlink(missing_ok=True)
    return tally


def _write(
    path: pathlib.Path,
    teacher: TeacherClient,
    names: Sequence[Key],
    known: Mapping[Key, Question],
    ledger: Ledger,
    tally: Tally,
) -> None:
    """Writes the answers of these names, and counts them."""
    with whole_output(path) as partial, writing(path), pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(names), _ROW_GROUP):
            rows = []
            for name in names[start : start + _ROW_GROUP]:
                row = ledger[name]
                row |= {"teacher_response": row["text"], "sample": name.sample}
                tally.count(row["text"], row["finish_reason"])
                # A category or --model_name may have changed since the answer came.
                rows.append(row | question(teacher, known[name]) if name in known else row)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def check_complete(path: pathlib.Path, ledger: Ledger) -> None:
    """Raises a `UserError` if the Parquet file holds more than the ledger, or is no Parquet file."""
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
