"""Asks a teacher behind an OpenAI-compatible chat API: one request with retries, or many at a time.

The `openai` client sends the requests. Its own retries are off, because these ones share their waits and limits, stop
on demand, and count what each attempt may cost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import random
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import openai

from gadjax.data.chats import Messages
from gadjax.errors import UserError, first_line
from gadjax.teacher.budget import Account
from gadjax.teacher.ledger import LedgerEntry
from gadjax.teacher.limits import LONGEST_ASKED_WAIT, Limits
from gadjax.teacher.protocol import RequestSettings, bad_url, parse_answer, parse_url, retry_after, without_login
from gadjax.teacher.usage import expected_tokens

OPENAI_URL = "https://api.openai.com/v1"

_LONGEST_WAIT = 60.0  # seconds between attempts, unless the server names a time
_UNREACHABLE_AFTER = 3  # attempts of a request without an answer, before the server has answered anything
_HOPELESS_CODES = ("insufficient_quota", "model_not_found")  # no request can succeed, whatever the status
_CHAT = "/chat/completions"
_UNKNOWN = {_CHAT: "--model={} is unknown there"}  # another meaning of HTTP 404, by path
_MAYBE_MADE = (408, 502, 504, 524)  # a gateway gave up, but the model behind it may have answered
_LOAD = (429, 503)  # the server is asked too much

T = TypeVar("T")


class RowFailed(Exception):
    """One prompt got no answer, but others may; the message says why."""


class _Transient(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(
        self, message: str, wait: float | None = None, *, remedy: str = "", load: bool = False, billed: bool = False
    ):
        super().__init__(message)
        self.wait = wait  # seconds that the server asked for
        self.remedy = remedy  # what to do if the server never answers
        self.load = load  # the server is asked too much
        self.billed = billed  # the answer may have been made, and must be paid for


class TeacherClient:
    """Asks the API; any number of tasks may `await ask(content)` at once. An async context manager."""

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: RequestSettings,
        *,
        api_key: str | None,
        name: str | None = None,
        system: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 8,
        first_wait: float = 1.0,
        limits: Limits | None = None,
        limit_field: str = "max_tokens",
        fields: Mapping[str, Any] | None = None,
    ):
        """
        Args:
          base_url: of the API, up to but without /chat/completions.
          model: its name in requests.
          sampling: how answers are drawn.
          api_key: api.openai.com needs one. None sends a dummy, which one's own servers accept.
          name: the model's name in the ledger; `model` by default.
          system: a system prompt before every chat.
          timeout: seconds of one attempt.
          max_retries: attempts after the first.
          first_wait: mean seconds before the second attempt; each later wait is twice as long.
          limits: on attempts in flight and per minute; none by default.
          limit_field: field of requests for the longest answer; newer models of OpenAI take "max_completion_tokens".
          fields: more fields of requests, such as {"reasoning_effort": "low"}.

        Raises:
          UserError: the URL is no HTTP URL, or the key is missing or cannot be sent.
        """
        self.base_url = without_login(base_url)
        url = parse_url(base_url)
        api_key = (api_key or "").strip()
        if not api_key and url.hostname == urllib.parse.urlsplit(OPENAI_URL).hostname:
            raise UserError("OPENAI_API_KEY is not set; set this variable, or give another --base_url")
        if not (api_key.isascii() and api_key.isprintable()):
            raise UserError("OPENAI_API_KEY holds characters that no key has; set this variable anew")
        self.model, self.name, self.sampling, self.system = model, name or model, sampling, system
        self.fields, self._limit_field = dict(fields or {}), limit_field
        self.limits = limits or Limits(1_000_000)
        self.stop = self.limits.stop  # once set, no attempt begins and waits end
        self.retries = 0
        self._secrets = [secret for secret in (api_key, url.password) if secret]
        self._timeout, self._max_retries, self._first_wait = timeout, max_retries, first_wait
        self._answered = False  # the server has answered anything, even an error
        self._random = random.Random()
        key = api_key or "none"
        try:
            self._client = openai.AsyncOpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)
        except Exception as error:  # the HTTP library refuses a URL that the standard library accepts
            raise bad_url(base_url, f"{first_line(error)}; ") from None

    async def __aenter__(self) -> TeacherClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def request(self, content: Messages, sample: int = 0) -> dict[str, Any]:
        """The body of the request for answer number `sample` to a chat; the number changes a seed."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        sampling = dataclasses.asdict(self.sampling_of(sample))
        sampling[self._limit_field] = sampling.pop("max_tokens")
        fields = {"model": self.model, "messages": system + content} | sampling
        return {name: value for name, value in fields.items() if value is not None} | self.fields

    def sampling_of(self, sample: int) -> RequestSettings:
        """How answer number `sample` to a chat is drawn: as all are, but with a seed of its own."""
        if self.sampling.seed is None:
            return self.sampling
        return dataclasses.replace(self.sampling, seed=self.sampling.seed + sample)

    def fingerprint(self, content: Messages, sample: int = 0) -> str:
        """Hash of the request; the same model, chat and sampling have the same one."""
        body = json.dumps(self.request(content, sample), sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    async def ask(self, content: Messages, sample: int = 0, account: Account | None = None) -> LedgerEntry:
        """The teacher's answer to a chat.

        Waits between attempts grow exponentially, with jitter. All requests keep to a server's Retry-After.

        Args:
          content: the chat.
          sample: number of the answer to this chat, from 0.
          account: sets aside what each attempt may cost.

        Raises:
          RowFailed: the API refuses this chat, or every attempt failed.
          UserError: no chat can succeed (bad key, unknown model, no such server).
          asyncio.CancelledError: `stop` was set before an answer came.
        """
        return await self._retrying(lambda: self._limited(content, sample, account))

    async def call(self, send: Callable[[openai.AsyncOpenAI], Awaitable[T]], path: str) -> T:
        """The result of another request to the API, with retries and errors as by `ask`.

        Args:
          send: makes one attempt. A ValueError means a malformed response, which is tried again.
          path: of the request below the base URL, for messages.
        """

        async def attempt() -> T:
            try:
                return await self._send(send, path)
            except ValueError as error:
                raise _Transient(f"malformed answer: {self.clean(str(error))}") from None

        return await self._retrying(attempt)

    async def _retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        for number in range(self._max_retries + 1):
            if self.stop.is_set():
                raise asyncio.CancelledError
            try:
                return await attempt()
            except _Transient as failure:
                if failure.remedy and not self._answered and number + 1 >= _UNREACHABLE_AFTER:
                    message = f"nothing answers at --base_url={self.base_url} ({failure}); {failure.remedy}"
                    raise UserError(message) from None
                if number == self._max_retries:
                    raise RowFailed(f"{failure}, {number + 1} attempts") from None
                self.retries += 1
                await self._pause(number, failure.wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _pause(self, attempt: int, asked: float | None) -> None:
        jitter = self._random.uniform(0.5, 1.5)
        wait = min(self._first_wait * 2**attempt, _LONGEST_WAIT) * jitter
        if asked is not None:
            # Requests that were refused together must not return together.
            wait = min(asked, LONGEST_ASKED_WAIT) + self._first_wait * jitter
        try:
            await asyncio.wait_for(self.stop.wait(), wait)
        except TimeoutError:
            return

    async def _limited(self, content: Messages, sample: int, account: Account | None) -> LedgerEntry:
        """One attempt, within the limits; tells the account and the limits what it took."""
        if account:
            await account.begin()
        used: int | None = 0
        billed = False
        try:
            slot = await self.limits.acquire(expected_tokens(content, self.system) + self.sampling.max_tokens)
            try:
                billed, used = True, None  # the cost is unknown until the attempt ends, or if its task is cancelled
                answer = await self._attempt(content, sample)
            except _Transient as failure:
                billed, used = failure.billed, None if failure.billed else 0
                if failure.load:
                    self.limits.refused(slot, failure.wait)
                raise
            except (RowFailed, UserError):
                billed, used = False, 0
                raise
            else:
                used = answer.tokens
                self.limits.answered()
                return answer
            finally:
                self.limits.release(slot, used)
        except BaseException:
            if account:
                account.failed(billed=billed)
            raise

    async def _attempt(self, content: Messages, sample: int) -> LedgerEntry:
        body = self.request(content, sample)
        more = {name: body.pop(name) for name in self.fields}  # the client may not know these fields
        raw = await self._send(
            lambda client: client.chat.completions.with_raw_response.create(**body, extra_body=more), _CHAT
        )
        try:
            return parse_answer(raw.content)
        except ValueError as error:
            raise _Transient(f"malformed answer: {self.clean(str(error))}", billed=True) from None

    async def _send(self, send: Callable[[openai.AsyncOpenAI], Awaitable[T]], path: str) -> T:
        """Sends once; raises what an error of the `openai` client means."""
        try:
            answer = await send(self._client)
        except openai.APITimeoutError:
            remedy = f"raise --requests_timeout={self._timeout:g} if the server is slow, or mend the URL"
            raise _Transient(f"no answer within {self._timeout:g} s", remedy=remedy, billed=True) from None
        except openai.APIConnectionError as error:
            cause = self.clean(str(error.__cause__ or error))
            # A request that never connected was not received. The class is that of the client's HTTP library.
            sent = type(error.__cause__).__name__ != "ConnectError"
            remedy = "start the server or mend the URL"
            raise _Transient(f"connection failed: {cause}", remedy=remedy, billed=sent) from None
        except openai.APIStatusError as error:
            self._answered = True
            raise self._status_failure(error, path) from None
        self._answered = True
        return answer

    def _status_failure(self, error: openai.APIStatusError, path: str) -> Exception:
        status, body = error.status_code, error.body
        said = body.get("message") or body.get("detail") if isinstance(body, dict) else body  # FastAPI says "detail"
        said = self.clean(str(said or error.message))
        if status in (401, 403):
            return UserError(f"{self.base_url} refuses the key in OPENAI_API_KEY (HTTP {status}: {said})")
        if error.code in _HOPELESS_CODES or (status == 404 and "model" in said.lower()):
            return UserError(f"{self.base_url} refuses --model={self.model} (HTTP {status}: {said})")
        if status == 404:  # a wrong path; servers say so in many ways, but seldom name the model then
            return UserError(
                f"--base_url={self.base_url} has no {path} (HTTP 404: {said}); the URL may lack /v1 at its end, or "
                f"{_UNKNOWN.get(path, 'the API does not offer this, or not to this key').format(self.model)}"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return _Transient(
                f"HTTP {status}: {said}",
                retry_after(error.response.headers),
                load=status in _LOAD,
                billed=status in _MAYBE_MADE,
            )
        if "max_completion_tokens" in said and self._limit_field == "max_tokens":
            return UserError(
                f"{self.base_url}: --model={self.model} does not take max_tokens (HTTP {status}: {said}); give "
                "--limit_field=max_completion_tokens"
            )
        return RowFailed(f"HTTP {status}: {said}")

    def clean(self, text: str) -> str:
        """A server's message on one short line, without the key and what looks like one, even half masked."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"\bsk-[\w*.-]+", "***", text)
        text = " ".join(text.split())
        return text if len(text) <= 200 else text[:197] + "..."
