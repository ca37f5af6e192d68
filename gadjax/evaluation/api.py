"""Questions to an OpenAI-compatible API, each paid for once: what a cache holds is not asked again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from gadjax.data.schema import Messages
from gadjax.errors import UserError
from gadjax.evaluation.result_cache import ResultCache, digest
from gadjax.progress import ProgressCallback
from gadjax.teacher.client import TeacherClient
from gadjax.teacher.collector import ask_many
from gadjax.teacher.protocol import LIMIT_FIELDS, RequestSettings, request_fields
from gadjax.teacher.usage import expected_tokens

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where models are asked, and how patiently.

    Attributes:
      base_url: of the API, up to /chat/completions.
      concurrency: requests under way at once.
      timeout: seconds for one attempt.
      max_retries: attempts after a request's first.
      limit_field: of requests, that says how long an answer may be.
      fields: more of requests, as `gadjax.teacher.protocol.request_fields` takes them.
      prices: of a million tokens, of prompts and of answers, for the estimate; None leaves the cost out.
      flags: the command's flag for each of the API's, where it has another name; for messages.
    """

    base_url: str
    concurrency: int = 16
    timeout: float = 120.0
    max_retries: int = 8
    limit_field: str = LIMIT_FIELDS[0]
    fields: str | Mapping[str, Any] | None = None
    prices: tuple[float, float] | None = None
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def client(self, model: str, sampling: RequestSettings) -> TeacherClient:
        """Asks the model; the key is that of OPENAI_API_KEY.

        Raises:
          UserError: the URL is no HTTP URL, the key is missing or cannot be sent, or `fields` cannot be used.
        """
        try:
            more, left_out = request_fields(self.fields, "--request_fields")
            return TeacherClient(
                self.base_url,
                model,
                dataclasses.replace(sampling, **dict.fromkeys(left_out)),
                api_key=os.environ.get("OPENAI_API_KEY"),
                timeout=self.timeout,
                max_retries=self.max_retries,
                limit_field=self.limit_field,
                fields=more,
            )
        except UserError as error:
            raise self.named(error) from None

    def named(self, error: UserError) -> UserError:
        """The client's error with this command's flags."""
        return UserError(re.sub(r"--[a-z_]+", lambda found: self.flags.get(found[0], found[0]), str(error)))


def key_of(client: TeacherClient, content: Messages, attempt: int = 1) -> str:
    """Where a cache keeps the answer: by server, request and attempt."""
    return digest("api", client.base_url, client.fingerprint(content), attempt)


def ask_all(
    endpoint: Endpoint,
    model: str,
    sampling: RequestSettings,
    questions: Mapping[str, Messages],
    cache: ResultCache,
    *,
    what: str,
    say: Say,
    watch: ProgressCallback,
) -> dict[str, str]:
    """Says what it will take, then asks what the cache lacks; each answer is on the disk before it counts.

    Args:
      endpoint: where the model is asked.
      model: the API's name of it.
      sampling: drawn with.
      questions: by `key_of`.
      cache: gets rows of `gadjax.teacher.ledger.LedgerEntry`'s fields.
      what: is asked for, in words.
      say: gets the estimate.
      watch: is told of every answer.

    Returns:
      Why there is no answer, by key; empty where all went well.

    Raises:
      UserError: why no question can succeed, or many in a row failed. What came before is in the cache.
    """
    missing = {key: content for key, content in questions.items() if key not in cache}
    if not missing:
        return {}
    say(f"{what}: {estimate(missing.values(), sampling.max_tokens, endpoint.prices)}")
    asking = _ask(endpoint, model, sampling, missing, cache, lambda count: watch(what, count, len(missing)))
    return _finish(asking)


def _finish(asking: Coroutine[Any, Any, dict[str, str]]) -> dict[str, str]:
    """Runs to the end; in a thread of its own where a loop runs already, as in a notebook, which cannot run another."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is None:
        return asyncio.run(asking)
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

    async def noted() -> dict[str, str]:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await asking

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        ends = thread.submit(asyncio.run, noted())
        try:
            return ends.result()
        except KeyboardInterrupt:  # came to this thread: the other one would go on asking
            for loop, task in running:
                loop.call_soon_threadsafe(task.cancel)
            raise


async def _ask(endpoint, model, sampling, questions, cache, done) -> dict[str, str]:
    received = 0
    remedy = (
        "; the same command goes on from here, and --request_fields=JSON adds fields to requests or, set to null, "
        "leaves temperature and top_p out"
    )
    async with endpoint.client(model, sampling) as client:

        async def ask(question: tuple[str, Messages]) -> None:
            nonlocal received
            key, content = question
            answer = await client.ask(content)
            cache.add({key: dataclasses.asdict(answer)})
            received += 1
            done(received)

        try:
            failures = await ask_many(
                client, list(questions.items()), ask, concurrency=endpoint.concurrency, remedy=remedy
            )
        except UserError as error:
            raise endpoint.named(error) from None
    return {key: reason for (key, _), reason in failures}


def estimate(missing: Iterable[Messages], max_tokens: int, prices: tuple[float, float] | None) -> str:
    """What questions will take, in words, before they are asked.

    Args:
      missing: the questions.
      max_tokens: of an answer.
      prices: of a million tokens, of prompts and of answers; None where they are not known.
    """
    inputs = [expected_tokens(content) for content in missing]
    tokens = sum(inputs), len(inputs) * max_tokens
    said = f"{len(inputs)} requests, about {tokens[0]:,} tokens of prompts, at most {tokens[1]:,} of answers"
    if prices is None:
        return said
    cost = sum(count * price for count, price in zip(tokens, prices, strict=True)) / 1e6
    return f"{said}, cost at most about {cost:.4g}"
