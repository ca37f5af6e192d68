"""Questions to an OpenAI-compatible API, each paid for once: what a cache holds is not asked again."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gadjax.data.chats import Messages
from gadjax.errors import UserError
from gadjax.evaluation.result_cache import ResultCache, digest
from gadjax.evaluation.settings import EvaluationSettings
from gadjax.progress import ProgressCallback
from gadjax.teacher.client import TeacherClient
from gadjax.teacher.collector import ask_many
from gadjax.teacher.in_loop import finish
from gadjax.teacher.protocol import RequestSettings, request_fields
from gadjax.teacher.usage import expected_tokens

Say = Callable[[str], None]
_REMEDY = (
    "; the same command goes on from here, and --request_fields=JSON adds fields to requests or, set to null, leaves "
    "temperature and top_p out"
)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An API, and how requests to it look.

    Attributes:
      base_url: up to /chat/completions.
      limit_field: the field of a request that limits the tokens of the answer.
      fields: more fields of a request, as `gadjax.teacher.protocol.request_fields` takes them.
      settings: for concurrency, timeout, retries and prices.
      flags: this command's flags for those that the client names in messages, if they differ.
    """

    base_url: str
    limit_field: str
    fields: str | Mapping[str, Any] | None
    settings: EvaluationSettings
    flags: Mapping[str, str]

    def client(self, model: str, sampling: RequestSettings) -> TeacherClient:
        """A client that asks the model, with the key in OPENAI_API_KEY.

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
                timeout=self.settings.requests_timeout,
                max_retries=self.settings.max_retries,
                limit_field=self.limit_field,
                fields=more,
            )
        except UserError as error:
            raise self.named(error) from None

    def named(self, error: UserError) -> UserError:
        """The client's error with this command's flags."""
        return UserError(re.sub(r"--[a-z_]+", lambda found: self.flags.get(found[0], found[0]), str(error)))


def key_of(client: TeacherClient, content: Messages, attempt: int = 1) -> str:
    """The cache's key of an answer, made of the server, the request and the attempt."""
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
    """Asks the questions that the cache lacks, after an estimate; each answer is on the disk before it counts.

    Args:
      endpoint: where the model is asked.
      model: the API's name of it.
      sampling: of the answers.
      questions: chats by `key_of`.
      cache: gets rows with the fields of `gadjax.teacher.ledger.LedgerEntry`.
      what: describes the questions, in messages.
      say: gets the estimate.
      watch: is called after every answer.

    Returns:
      The reason for each answer that is missing, by key.

    Raises:
      UserError: no question can succeed, or many in a row failed. The answers until then are in the cache.
    """
    missing = {key: content for key, content in questions.items() if key not in cache}
    if not missing:
        return {}
    say(f"{what}: {estimate(missing.values(), sampling.max_tokens, endpoint.settings.prices)}")
    return finish(_ask(endpoint, model, sampling, missing, cache, lambda count: watch(what, count, len(missing))))


async def _ask(endpoint, model, sampling, questions, cache, done) -> dict[str, str]:
    received = 0
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
                client, list(questions.items()), ask, concurrency=endpoint.settings.concurrency, remedy=_REMEDY
            )
        except UserError as error:
            raise endpoint.named(error) from None
    return {key: reason for (key, _), reason in failures}


def estimate(missing: Iterable[Messages], max_tokens: int, prices: tuple[float, float] | None) -> str:
    """The requests, tokens and cost of questions, as text.

    Args:
      missing: the questions.
      max_tokens: of an answer.
      prices: of a million tokens of prompts and of answers; None if they are not known.
    """
    inputs = [expected_tokens(content) for content in missing]
    tokens = sum(inputs), len(inputs) * max_tokens
    said = f"{len(inputs)} requests, about {tokens[0]:,} tokens of prompts, at most {tokens[1]:,} of answers"
    if prices is None:
        return said
    cost = sum(count * price for count, price in zip(tokens, prices, strict=True)) / 1e6
    return f"{said}, cost at most about {cost:.4g}"
