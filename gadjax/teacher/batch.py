"""Collects through the Batch API: half the price, within a day (https://platform.openai.com/docs/guides/batch).

Each step is on disk (`batch_state`) before and after it is taken, so that the same command continues with batches from
before a kill. If the kill leaves open whether a batch was created, its metadata tells. A result that is in the ledger
already is not appended again.

Responses are read as raw JSON. The `openai` client's own pages would take a malformed list for an empty one, and a
batch would be created, and paid for, twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from openai import AsyncOpenAI

from gadjax.errors import UserError
from gadjax.teacher.batch_state import CREATED, CREATING, PLANNED, UPLOADED, Batch, Batches, Request, upload_line
from gadjax.teacher.budget import Budget
from gadjax.teacher.client import RowFailed, TeacherClient
from gadjax.teacher.collector import Collected, Question, key, question
from gadjax.teacher.ledger import BATCH, Key, Ledger
from gadjax.teacher.protocol import SHOWN_BYTES, parse_answer
from gadjax.teacher.usage import most_usage

MOST_REQUESTS = 50_000  # per file, the API's limit
MOST_BYTES = 200_000_000  # per file, the API's limit

_ENDED = ("completed", "failed", "expired", "cancelled")
_PASSING = (408, 409, 425, 429)  # statuses of requests that may succeed next time, as do all from 500 on
_TRIES = 3  # batches of one run that may hold the same request
_LOOK_AGAIN = 5.0  # seconds until a list surely shows a batch that was created just before a kill
_TRANSFER_SECONDS = 600.0  # for a file of requests or results
_TAG = "gadjax"  # metadata field that holds the batch's name

T = TypeVar("T")


@dataclasses.dataclass
class _Outcome:
    """The outcome of a run's batches."""

    answered: int = 0
    received: int = 0  # answers that the ledger did not have yet
    refused: dict[Key, str] = dataclasses.field(default_factory=dict)  # why there will be no answer
    unanswered: dict[Key, str] = dataclasses.field(default_factory=dict)  # why there is no answer yet


class BatchCollector:
    """Sends questions as batches, and fetches their answers."""

    def __init__(
        self,
        teacher: TeacherClient,
        ledger: Ledger,
        batches: Batches,
        *,
        budget: Budget | None = None,
        batch_size: int = MOST_REQUESTS,
        most_bytes: int = MOST_BYTES,
        poll_seconds: float = 60.0,
        tell: Callable[[str], None] = lambda line: None,
    ):
        """
        Args:
          teacher: sends the requests.
          ledger: gets the answers.
          batches: under way, maybe from earlier runs; their answers are fetched first.
          budget: must have room for every request of a batch at its most expensive.
          batch_size: requests in a batch, at most.
          most_bytes: of a file of requests.
          poll_seconds: time between looks at the batches.
          tell: gets lines about the state of the batches.
        """
        self._teacher, self._ledger, self._batches, self._budget = teacher, ledger, batches, budget
        self._size, self._bytes, self._poll, self._tell = batch_size, most_bytes, poll_seconds, tell

    async def collect(self, asked: Sequence[Question]) -> Collected:
        """Asks what neither the ledger nor an open batch has, and returns when all batches have ended.

        Requests that expired, or that met a fault of the API, are asked again, in at most three batches. Requests that
        the API refuses are reported.

        Raises:
          UserError: no request can succeed, or the API does not take the batches.
        """
        result, outcome = Collected(), _Outcome()
        names = {key(self._teacher, one): one for one in asked}
        tries: Counter[Key] = Counter()
        for batch in list(self._batches.open):
            await self._resume(batch)
        while True:
            # Plan batches of the requests that have no answer and may get one.
            tries.update(waiting := self._batches.keys())
            done = waiting | outcome.refused.keys() | {name for name, count in tries.items() if count >= _TRIES}
            missing = [one for name, one in names.items() if name not in self._ledger and name not in done]
            planned = self._plan(missing)
            result.unasked = len(missing) - planned
            tries.update(key(self._teacher, one) for one in missing[:planned])
            if not self._batches.open:
                break
            # Send them, and wait for all answers.
            for batch in self._batches.open:
                if batch.step == PLANNED:
                    await self._submit(batch)
            answered_before = outcome.answered
            await self._fetch_all(outcome)
            if outcome.answered == answered_before:
                break  # another round would go no better
        result.received, refused = outcome.received, outcome.refused
        unanswered = outcome.unanswered.items()
        later = {name: reason for name, reason in unanswered if name not in self._ledger and name not in refused}
        if later and not refused and not any(name in self._ledger for name in names):
            reason = next(iter(later.values()))
            raise UserError(f"{self._teacher.base_url}: no request of a batch was answered: {reason}")
        for name, reason in (refused | later).items():
            result.failures[names[name].name if name in names else name.id] = reason
        return result

    def _plan(self, missing: Sequence[Question]) -> int:
        """Puts questions into new batches, as far as the budget reaches, and returns their number."""
        chunk: list[Request] = []
        size, planned = 0, 0
        most, teacher = self._batches.most, self._teacher
        for one in missing:
            content = one.prompt.content
            body = teacher.request(content, one.sample)
            usage = most_usage(content, teacher.system, teacher.sampling.max_tokens)
            most += usage
            if self._budget and not self._budget.fits(most, batch=True):
                break
            length = len(upload_line("x" * 32, body))
            if length > self._bytes:
                raise UserError(f"prompt {one.prompt.id!r} takes {length} bytes; a batch's file can have {self._bytes}")
            if chunk and (len(chunk) == self._size or size + length > self._bytes):
                self._batches.plan(chunk, teacher.base_url)
                chunk, size = [], 0
            chunk.append(Request(key(teacher, one), question(teacher, one), body, usage))
            size += length
            planned += 1
        if chunk:
            self._batches.plan(chunk, teacher.base_url)
        return planned

    async def _resume(self, batch: Batch) -> None:
        """Finds out whether a batch of an earlier run was created, and forgets it if not."""
        if batch.base_url != self._teacher.base_url:
            raise UserError(f"{self._batches.path}: a batch is under way at --base_url={batch.base_url}; give that")
        if batch.step == CREATED:
            return
        for pause in (0.0, min(self._poll, _LOOK_AGAIN)):
            await asyncio.sleep(pause)
            found = await self._call(lambda client: _find(client, batch.name), "/batches")
            if found:
                return self._batches.reach(batch, CREATED, batch_id=found)
        self._batches.close(batch)

    async def _submit(self, batch: Batch) -> None:
        """Uploads a planned batch's file and creates the batch."""
        name, content = f"{_TAG}-{batch.name}.jsonl", self._batches.upload(batch)

        async def find_file(client: AsyncOpenAI) -> str | None:
            async for file in _list(client.files, purpose="batch", order="desc"):
                if file.get("filename") == name:
                    return file["id"]
            return None

        def upload(client: AsyncOpenAI) -> Awaitable[Any]:
            file = (name, content, "application/jsonl")
            return client.files.with_raw_response.create(file=file, purpose="batch", timeout=_TRANSFER_SECONDS)

        def create(client: AsyncOpenAI) -> Awaitable[Any]:
            return client.batches.with_raw_response.create(
                input_file_id=str(batch.file_id),
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TAG: batch.name},
            )

        self._batches.reach(batch, UPLOADED, file_id=await self._make_once(upload, find_file, "/files"))
        self._batches.reach(batch, CREATING)
        created = await self._make_once(create, lambda client: _find(client, batch.name), "/batches")
        self._batches.reach(batch, CREATED, batch_id=created)
        self._tell(f"batch {batch.batch_id}: {batch.requests} requests submitted")

    async def _make_once(
        self,
        make: Callable[[AsyncOpenAI], Awaitable[Any]],
        find: Callable[[AsyncOpenAI], Awaitable[str | None]],
        path: str,
    ) -> str:
        """The id of what `make` makes. Later attempts look for it first, because only the response may be lost."""
        tried = False

        async def attempt(client: AsyncOpenAI) -> str:
            nonlocal tried
            if tried and (found := await find(client)):
                return found
            tried = True
            return _object(await make(client), "id", str)["id"]

        return await self._call(attempt, path)

    async def _fetch_all(self, outcome: _Outcome) -> None:
        """Waits for the open batches, and takes in the results of each as it ends."""
        shown: dict[str, str] = {}
        while True:
            for batch in list(self._batches.open):

                async def retrieve(client: AsyncOpenAI, name: str = str(batch.batch_id)) -> dict[str, Any]:
                    return _object(await client.batches.with_raw_response.retrieve(name), "status", str)

                state = await self._call(retrieve, f"/batches/{batch.batch_id}")
                counts = state.get("request_counts") or {}
                line = f"batch {batch.batch_id}: {state['status']}, {counts.get('completed', 0)} of {batch.requests}"
                if shown.get(batch.name) != line:
                    shown[batch.name] = line
                    self._tell(line)
                if state["status"] in _ENDED:
                    await self._take_in(batch, state, outcome)
            if not self._batches.open:
                return
            await asyncio.sleep(self._poll)

    async def _take_in(self, batch: Batch, state: dict[str, Any], outcome: _Outcome) -> None:
        """Appends an ended batch's answers to the ledger, and notes the outcome of its other requests."""
        requests = {batch.custom_id(i): (name, asks) for i, (name, asks, _) in enumerate(self._batches.requests(batch))}
        for field in ("output_file_id", "error_file_id"):
            if not (file := state.get(field)):
                continue
            for line in await self._call(functools.partial(_content, file=file), f"/files/{file}/content"):
                if (custom_id := line["custom_id"]) not in requests:
                    raise UserError(f"batch {batch.batch_id}: a result of {custom_id!r}, which was not asked in it")
                name, asks = requests.pop(custom_id)
                self._note(name, asks, line, batch, outcome)
        reason = f"batch {batch.batch_id} {state['status']}"
        if errors := (state.get("errors") or {}).get("data"):
            reason += f": {self._teacher.clean(str(errors[0].get('message') or errors[0].get('code')))}"
        # A user who cancels a batch does not want another one.
        rest = outcome.refused if state["status"] == "cancelled" else outcome.unanswered
        rest |= {name: reason for name, _ in requests.values() if name not in self._ledger}
        self._ledger.sync()
        self._batches.close(batch)

    def _note(self, name: Key, asks: dict[str, Any], line: dict[str, Any], batch: Batch, outcome: _Outcome) -> None:
        """Takes in one line of a batch's results."""
        response, error = line.get("response") or {}, line.get("error") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            if name not in self._ledger:  # it may be there from a run that was killed at this place
                try:
                    answer = parse_answer(json.dumps(body).encode())
                except ValueError as fault:
                    outcome.unanswered[name] = f"malformed answer: {self._teacher.clean(str(fault))}"
                    if self._budget:
                        self._budget.lose(name, most_usage(asks["content"], asks["system"], asks["max_tokens"]))
                    return
                self._ledger.append(name, answer, asks | {BATCH: batch.batch_id})
                outcome.received += 1
            outcome.answered += 1
            return
        said = body.get("error") if isinstance(body, dict) and body.get("error") else error
        said = (said.get("message") or said.get("code")) if isinstance(said, dict) else said
        said = self._teacher.clean(str(said))
        passing = status is None or status in _PASSING or status >= 500
        reason = said if status is None else f"HTTP {status}: {said}"
        (outcome.unanswered if passing else outcome.refused)[name] = reason

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[T]], path: str) -> T:
        """`TeacherClient.call`, whose errors say here how to continue."""
        try:
            return await self._teacher.call(send, path)
        except RowFailed as error:
            reason = f"{self._teacher.base_url}{path}: {error}"
        except UserError as error:
            reason = str(error)
        gone = " (take out a batch that is gone for good)" if "HTTP 404" in reason and path.count("/") > 1 else ""
        raise UserError(
            f"{reason}; what is under way stands in {self._batches.path}{gone}, and the same command goes on from there"
        )


async def _find(client: AsyncOpenAI, name: str) -> str | None:
    """The id of the batch whose metadata hold this name, or None."""
    async for found in _list(client.batches):
        if (found.get("metadata") or {}).get(_TAG) == name:
            return found["id"]
    return None


async def _list(resource: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
    """All files, or all batches, of the account."""
    after: dict[str, str] = {}
    while True:
        page = _object(await resource.with_raw_response.list(limit=100, **options, **after), "data", list)
        for entry in page["data"]:
            yield entry
        if not page.get("has_more") or not page["data"]:
            return
        after = {"after": page["data"][-1]["id"]}


async def _content(client: AsyncOpenAI, file: str) -> list[dict[str, Any]]:
    """The lines of a file of results; ValueError if one does not name its request."""
    raw = await client.files.with_raw_response.content(file, timeout=_TRANSFER_SECONDS)
    lines = [json.loads(line) for line in raw.content.splitlines() if line.strip()]
    if not all(isinstance(line, dict) and isinstance(line.get("custom_id"), str) for line in lines):
        raise ValueError("a result that does not say of which request")
    return lines


def _object(raw: Any, field: str, kind: type) -> dict[str, Any]:
    """The JSON object of a response; ValueError if it has no `field` of this kind."""
    try:
        value = json.loads(raw.content)
    except ValueError:
        raise ValueError(f"no JSON but {raw.content[:SHOWN_BYTES]!r}") from None
    if not isinstance(value, dict) or not isinstance(value.get(field), kind):
        raise ValueError(f"no `{field}` in {raw.content[:SHOWN_BYTES]!r}")
    return value
