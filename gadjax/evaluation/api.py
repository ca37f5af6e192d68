"""Questions to an OpenAI-compatible API, each paid for once: what a journal holds is not asked again."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from gadjax.data.schema import Messages
from gadjax.errors import UserError
from gadjax.evaluation.journal import Journal, digest
from gadjax.teacher.client import RowFailed, Sampling, Teacher

_LEAST_BREAK = 8  # failed questions in a row that end it; at least the concurrency
_CHARACTERS = 4  # a token of English, about


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where models are asked, and how patiently.

    Attributes:
      base_url: of the API, up to /chat/completions.
      concurrency: requests under way at once.
      timeout: seconds for one attempt.
      max_retries: attempts after a request's first.
      flags: the command's flags for the URL and for the model, for messages.
    """

    base_url: str
    concurrency: int = 16
    timeout: float = 120.0
    max_retries: int = 8
    flags: tuple[str, str] = ("--base_url", "--models")

    def client(self, model: str, sampling: Sampling) -> Teacher:
        """Asks the model; the key is that of OPENAI_API_KEY.

        Raises:
          UserError: the URL is no HTTP URL, or the key is missing or cannot be sent.
        """
        try:
            return Teacher(
                self.base_url,
                model,
                sampling,
                api_key=os.environ.get("OPENAI_API_KEY"),
                timeout=self.timeout,
                max_retries=self.max_retries,
            )
        except UserError as error:
            raise self.named(error) from None

    def named(self, error: UserError) -> UserError:
        """The client's error with this command's flags."""
        url, model = self.flags
        return type(error)(str(error).replace("--base_url", url).replace("--model=", f"{model}="))


def key_of(client: Teacher, content: Messages, attempt: int = 1) -> str:
    """Where a journal keeps the answer: by server, request and attempt."""
    return digest("api", client.base_url, client.fingerprint(content), attempt)


def ask_all(
    endpoint: Endpoint,
    client: Callable[[], Teacher],
    questions: Mapping[str, Messages],
    journal: Journal,
    *,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, str]:
    """Asks what the journal lacks; each answer is on the disk before it counts.

    Args:
      endpoint: of the client.
      client: makes it anew, since it belongs to one event loop.
      questions: by `key_of`.
      journal: gets rows of `gadjax.teacher.ledger.Answer`'s fields.
      done: called with the number of answers so far.

    Returns:
      Why there is no answer, by key; empty where all went well.

    Raises:
      UserError: why no question can succeed, or many in a row failed. What came before is in the journal.
    """
    missing = {key: content for key, content in questions.items() if key not in journal}
    if not missing:
        return {}
    return asyncio.run(_ask(endpoint, client, missing, journal, done))


async def _ask(endpoint, client, questions, journal, done) -> dict[str, str]:
    waiting = iter(questions.items())
    failures: dict[str, str] = {}
    in_a_row = received = 0
    async with client() as asked:

        async def work() -> None:
            nonlocal in_a_row, received
            for key, content in waiting:
                if asked.stop.is_set():
                    return
                try:
                    answer = await asked.ask(content)
                except RowFailed as error:
                    failures[key] = str(error)
                    in_a_row += 1
                    if in_a_row >= max(_LEAST_BREAK, endpoint.concurrency):
                        where = f"at --base_url={asked.base_url}"
                        raise UserError(
                            f"{in_a_row} questions in a row failed {where}, the last with: {error}"
                        ) from None
                    continue
                in_a_row = 0
                journal.add({key: dataclasses.asdict(answer)})
                received += 1
                done(received)

        async def guarded() -> None:
            try:
                await work()
            except BaseException:
                asked.stop.set()
                raise

        workers = (guarded() for _ in range(min(endpoint.concurrency, len(questions))))
        ends = await asyncio.gather(*workers, return_exceptions=True)
    # Workers that `stop` woke from a wait end as cancelled; the first of the others says why all stopped.
    for error in ends:
        if isinstance(error, UserError):
            raise endpoint.named(error) from None
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error
    return failures


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What questions will cost, before they are asked: tokens of English at four characters each.

    Attributes:
      requests: first attempts.
      prompt_tokens: about.
      answer_tokens: at most.
    """

    requests: int
    prompt_tokens: int
    answer_tokens: int

    def text(self, prices: tuple[float, float] | None) -> str:
        """On one line; `prices`: dollars for a million tokens, of prompts and of answers."""
        said = f"{self.requests} requests: about {self.prompt_tokens:,} prompt tokens, "
        said += f"at most {self.answer_tokens:,} answer tokens"
        if prices is None:
            return said
        cost = (self.prompt_tokens * prices[0] + self.answer_tokens * prices[1]) / 1e6
        return f"{said}, at most about ${cost:,.2f}"


def estimate(questions: Mapping[str, Messages], journal: Journal, max_tokens: int) -> Estimate:
    """Of the questions that the journal lacks, with answers of at most `max_tokens`."""
    missing = [content for key, content in questions.items() if key not in journal]
    characters = sum(len(turn["content"]) for content in missing for turn in content)
    return Estimate(len(missing), -(-characters // _CHARACTERS), len(missing) * max_tokens)


def response_of(row: dict[str, Any]) -> tuple[str, str | None]:
    """Text and finish reason of a journal's row."""
    return row["text"], row["finish_reason"]
