"""Collects through the Batch API: half the price, within a day (https://platform.openai.com/docs/guides/batch).

Each step is written down before and after it is taken (`batch_state`), so that the same command takes up the batches
that were created before a kill; one of which the kill left this open is found by its metadata. Results are appended
to the ledger; those there already are not appended again.
"""

from __future__ import annotations

import asyncio
import dataclasses
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

MOST_REQUESTS = 50_000  # in a file, the API's limit
MOST_BYTES = 200_000_000  # of a file, the API's limit

_ENDPOINT = "/v1/chat/completions"
_ENDED = ("completed", "failed", "expired", "cancelled")
_PASSING = (408, 409, 425, 429)  # statuses of a request that may succeed next time; and all from 500
_TRIES = 3  # batches that a request can be in during one run
_LOOK_AGAIN = 5.0  # seconds until a list surely shows what was created just before a kill
_TRANSFER_SECONDS = 600.0  # for a file of requests or results
_TAG = "gadjax"  # the metadata's field with the batch's name

T = TypeVar("T")


@dataclasses.dataclass
class _Round:
    """What became of the batches of one round."""

    answered: int = 0
    received: int = 0  # of these, those that a former run had not written down
    refused: dict[Key, str] = dataclasses.field(default_factory=dict)  # why the API has no answer to give
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
          teacher: with the API's client.
          ledger: for the answers.
          batches: under way; those of former runs are fetched first.
          budget: batches are filled as far as it reaches, every request at its most.
          batch_size: requests in a batch at most.
          most_bytes: of a file of requests.
          poll_seconds: between looks at the batches.
          tell: takes lines about how it goes.
        """
        self._teacher, self._ledger, self._batches, self._budget = teacher, ledger, batches, budget
        self._size, self._bytes, self._poll, self._tell = batch_size, most_bytes, poll_seconds, tell

    async def collect(self, asked: Sequence[Question]) -> Collected:
        """Asks what neither the ledger nor an open batch has; ends when all batches have.

        Requests that expired or met a fault of the API are asked again, in at most three batches; those that it
        refuses are reported.

        Raises:
          UserError: no request can succeed, or the API will not take the batches.
        """
        result = Collected()
        names = {key(self._teacher, one): one for one in asked}
        tries: Counter[Key] = Counter()
        later: dict[Key, str] = {}
        refused: dict[Key, str] = {}
        for batch in list(self._batches.open):
            await self._take_up(batch)
        while True:
            tries.update(waiting := self._batches.keys())
            done = waiting | refused.keys() | {name for name, count in tries.items() if count >= _TRIES}
            missing = [one for name, one in names.items() if name not in self._ledger and name not in done]
            planned = self._plan(missing)
            result.unasked = len(missing) - planned
            tries.update(key(self._teacher, one) for one in missing[:planned])
            if not self._batches.open:
                break
            for batch in self._batches.open:
                if batch.step == PLANNED:
                    await self._submit(batch)
            came = await self._fetch_all()
            result.received += came.received
            refused |= came.refused
            later |= came.unanswered
            if not came.answered:
                break  # another batch would fare no better
        later = {name: reason for name, reason in later.items() if name not in self._ledger and name not in refused}
        if later and not refused and not any(name in self._ledger for name in names):
            reason = next(iter(later.values()))
            raise UserError(f"{self._teacher.base_url}: no request of a batch was answered: {reason}")
        for name, reason in (refused | later).items():
            result.failures[names[name].name if name in names else name.id] = reason
        return result

    def _plan(self, missing: Sequence[Question]) -> int:
        """Puts questions into new batches, as far as the budget reaches; how many."""
        chunk: list[Request] = []
        size, planned = 0, 0
        most = self._batches.most
        for one in missing:
            prompt, teacher = one.prompt, self._teacher
            body = teacher.request(prompt.content, one.sample)
            request = Request(
                key(teacher, one),
                question(teacher, one),
                body,
                most_usage(prompt.content, teacher.system, teacher.sampling.max_tokens),
            )
            most += request.most
            if self._budget and not self._budget.fits_batches(most):
                break
            length = len(upload_line("x" * 32, body))
            if length > self._bytes:
                raise UserError(f"prompt {prompt.id!r} takes {length} bytes; a batch's file can have {self._bytes}")
            if chunk and (len(chunk) == self._size or size + length > self._bytes):
                self._batches.plan(chunk, teacher.base_url)
                chunk, size = [], 0
            chunk.append(request)
            size += length
            planned += 1
        if chunk:
            self._batches.plan(chunk, self._teacher.base_url)
        return planned

    async def _take_up(self, batch: Batch) -> None:
        """Finds out whether a batch of a former run was created, and forgets it where it was not."""
        if batch.base_url != self._teacher.base_url:
            raise UserError(f"{self._batches.path}: a batch is under way at --base_url={batch.base_url}; give that")
        if batch.step == CREATED:
            return
        found = await self._call(lambda client: _find(client, batch.name), "/batches")
        if not found:
            await asyncio.sleep(min(self._poll, _LOOK_AGAIN))
            found = await self._call(lambda client: _find(client, batch.name), "/batches")
        if found:
            self._batches.reach(batch, CREATED, batch_id=found)
        else:
            self._batches.close(batch)

    async def _submit(self, batch: Batch) -> None:
        """Takes a planned batch to the step where the API works on it."""
        self._batches.reach(batch, UPLOADED, file_id=await self._upload(batch))
        self._batches.reach(batch, CREATING)
        self._batches.reach(batch, CREATED, batch_id=await self._create(batch))
        self._tell(f"batch {batch.batch_id}: {batch.requests} requests submitted")

    async def _upload(self, batch: Batch) -> str:
        """Sends the file of requests."""
        filename = f"{_TAG}-{batch.name}.jsonl"
        content = self._batches.upload(batch)

        async def find(client: AsyncOpenAI) -> str | None:
            async for file in _list(client.files, purpose="batch", order="desc"):
                if file.get("filename") == filename:
                    return file["id"]
            return None

        def make(client: AsyncOpenAI) -> Awaitable[Any]:
            file = (filename, content, "application/jsonl")
            return client.files.with_raw_response.create(file=file, purpose="batch", timeout=_TRANSFER_SECONDS)

        return await self._make_once(make, find, "/files")

    async def _create(self, batch: Batch) -> str:
        """Creates the batch."""

        def make(client: AsyncOpenAI) -> Awaitable[Any]:
            return client.batches.with_raw_response.create(
                input_file_id=batch.file_id,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={_TAG: batch.name},
            )

        return await self._make_once(make, lambda client: _find(client, batch.name), "/batches")

    async def _make_once(
        self,
        make: Callable[[AsyncOpenAI], Awaitable[Any]],
        find: Callable[[AsyncOpenAI], Awaitable[str | None]],
        path: str,
    ) -> str:
        """The id of what is made; each later attempt first looks for it: the answer to the one before may be lost."""
        tried = False

        async def attempt(client: AsyncOpenAI) -> str:
            nonlocal tried
            if tried and (found := await find(client)):
                return found
            tried = True
            return _object(await make(client))["id"]

        return await self._call(attempt, path)

    async def _fetch_all(self) -> _Round:
        """Waits for the open batches, and takes in each as it ends."""
        came = _Round()
        shown: dict[str, str] = {}
        while True:
            for batch in list(self._batches.open):
                state = await self._call(
                    lambda client, name=batch.batch_id: _fetched(client.batches.with_raw_response.retrieve(name)),
                    f"/batches/{batch.batch_id}",
                )
                counts = state.get("request_counts") or {}
                line = f"batch {batch.batch_id}: {state['status']}, {counts.get('completed', 0)} of {batch.requests}"
                if shown.get(batch.name) != line:
                    shown[batch.name] = line
                    self._tell(line)
                if state["status"] in _ENDED:
                    await self._take_in(batch, state, came)
            if not self._batches.open:
                return came
            await asyncio.sleep(self._poll)

    async def _take_in(self, batch: Batch, state: dict[str, Any], came: _Round) -> None:
        """Appends a batch's answers to the ledger, and notes what became of its other requests."""
        requests = {batch.custom_id(i): (name, asks) for i, (name, asks, _) in enumerate(self._batches.requests(batch))}
        for field in ("output_file_id", "error_file_id"):
            if not (file := state.get(field)):
                continue
            for line in await self._call(lambda client, file=file: _content(client, file), f"/files/{file}/content"):
                if (custom_id := line["custom_id"]) not in requests:
                    raise UserError(f"batch {batch.batch_id}: a result of {custom_id!r}, which was not asked in it")
                name, asks = requests.pop(custom_id)
                self._note(name, asks, line, batch, came)
        reason = f"batch {batch.batch_id} {state['status']}"
        if errors := (state.get("errors") or {}).get("data"):
            reason += f": {self._teacher.clean(str(errors[0].get('message') or errors[0].get('code')))}"
        # Who cancels a batch does not want another.
        rest = came.refused if state["status"] == "cancelled" else came.unanswered
        rest |= {name: reason for name, _ in requests.values() if name not in self._ledger}
        self._ledger.sync()
        self._batches.close(batch)

    def _note(self, name: Key, asks: dict[str, Any], line: dict[str, Any], batch: Batch, came: _Round) -> None:
        """Takes in one line of a batch's results."""
        response, error = line.get("response") or {}, line.get("error") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            if name in self._ledger:  # of a run that was killed here
                came.answered += 1
                return
            try:
                answer = parse_answer(json.dumps(body).encode())
            except ValueError as fault:
                came.unanswered[name] = f"malformed answer: {self._teacher.clean(str(fault))}"
                if self._budget:
                    self._budget.lose(name, most_usage(asks["content"], asks["system"], asks["max_tokens"]))
                return
            self._ledger.append(name, answer, asks | {BATCH: batch.batch_id})
            came.answered += 1
            came.received += 1
            return
        said = body.get("error") if isinstance(body, dict) and body.get("error") else error
        said = self._teacher.clean(
            str(said.get("message") or said.get("code")) if isinstance(said, dict) else str(said)
        )
        passing = status is None or status in _PASSING or status >= 500
        reason = said if status is None else f"HTTP {status}: {said}"
        (came.unanswered if passing else came.refused)[name] = reason

    async def _call(self, send: Callable[[AsyncOpenAI], Awaitable[T]], path: str) -> T:
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
    """The id of the batch with this name in its metadata."""
    async for found in _list(client.batches):
        if (found.get("metadata") or {}).get(_TAG) == name:
            return found["id"]
    return None


async def _list(resource: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
    """All files, or all batches, of the account."""
    after: dict[str, str] = {}
    while True:
        page = _object(await resource.with_raw_response.list(limit=100, **options, **after))
        for entry in page["data"]:
            yield entry
        if not page.get("has_more") or not page["data"]:
            return
        after = {"after": page["data"][-1]["id"]}


async def _fetched(response: Awaitable[Any]) -> dict[str, Any]:
    found = _object(await response)
    if "status" not in found:
        raise ValueError("a batch without a status")
    return found


async def _content(client: AsyncOpenAI, file: str) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    raw = await client.files.with_raw_response.content(file, timeout=_TRANSFER_SECONDS)
    lines = [json.loads(line) for line in raw.content.splitlines() if line.strip()]
    if not all(isinstance(line, dict) and isinstance(line.get("custom_id"), str) for line in lines):
        raise ValueError("a result that does not say of which request")
    return lines


def _object(raw: Any) -> dict[str, Any]:
    """The JSON object of a response; ValueError where it is none, or lacks what all of these have."""
    try:
        value = json.loads(raw.content)
    except ValueError:
        raise ValueError(f"no JSON but {raw.content[:SHOWN_BYTES]!r}") from None
    if not isinstance(value, dict) or not ("id" in value or isinstance(value.get("data"), list)):
        raise ValueError(f"neither an object with an id nor a list in {raw.content[:SHOWN_BYTES]!r}")
    return value
