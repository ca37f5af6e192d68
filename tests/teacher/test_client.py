import asyncio
import email.utils
import itertools
import json
import math
import time

import pytest

from gadjax.errors import UserError
from gadjax.teacher.client import RowFailed, TeacherClient
from gadjax.teacher.limits import Limits
from gadjax.teacher.protocol import RequestSettings, retry_after
from tests.teacher.fake_server import FakeServer, Reply, error

KEY = "sk-very-secret-0123456789"
CHAT = [{"role": "user", "content": "One?"}]


def ask(server, **options):
    """Asks once, with short waits, and returns the answer."""
    options = {"api_key": KEY, "first_wait": 0.01, "max_retries": 3} | options

    async def run():
        async with TeacherClient(server.base_url, "fake", RequestSettings(0.7, 1.0, 16), **options) as teacher:
            return await teacher.ask(CHAT)

    return asyncio.run(run())


def failing(*replies):
    """A server that sends these replies first, and then answers."""
    return FakeServer(lambda prompt, attempt: replies[attempt - 1] if attempt <= len(replies) else Reply())


def test_the_request_and_the_answer():
    with FakeServer() as server:
        answer = ask(server, system="Be brief.")
    assert server.requests == [
        {
            "model": "fake",
            "messages": [{"role": "system", "content": "Be brief."}, *CHAT],
            "temperature": 0.7,
            "top_p": 1.0,
            "max_tokens": 16,
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]
    assert (answer.text, answer.finish_reason) == ("answer to One?", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.created) == (7, 3, 1_700_000_000)


PASSING = {
    "429": error(429, "slow down"),
    "500": error(500, "oops"),
    "503": Reply(status=503, body=b"<html>down</html>"),
    "dropped": Reply(drop=True),
    "no JSON": Reply(body=b"<html>hello</html>"),
    "half JSON": Reply(body=b'{"choices": ['),
    "no choices": Reply(body=b'{"choices": []}'),
    "error as 200": Reply(body=b'{"error": {"message": "busy"}}'),
    "wrong type": Reply(text=["no", "text"]),
    "slow": Reply(seconds=0.6),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_faults_that_pass_are_asked_again(fault):
    with failing(fault, fault) as server:
        assert ask(server, timeout=0.3).text == "an answer"
    # Three requests and no more: the client's own retries are off.
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "inf"}, math.inf),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 -0000"}, 0),
        # A date is the server's, whose clock may be another year's.
        ({"retry-after": "Sat, 01 Jan 2050 00:00:09 GMT", "date": "Sat, 01 Jan 2050 00:00:04 GMT"}, 5),
        ({"retry-after": "Sat, 01 Jan 2000 00:00:09 GMT", "date": "Sat, 01 Jan 2000 00:00:04 GMT"}, 5),
    ],
)
def test_what_retry_after_says(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept_to(form):
    def behave(prompt, attempt):
        later = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
        return error(429, "slow down", retry_after=later) if attempt == 1 else Reply()

    with FakeServer(behave) as server:
        ask(server)
    assert server.times[1] - server.times[0] >= 0.95


def test_waits_grow():
    with failing(*[error(500, "oops")] * 3) as server:
        ask(server, first_wait=0.1)
    waits = [b - a for a, b in itertools.pairwise(server.times)]
    assert waits[0] < 0.1 * 1.5 + 0.2 and waits[2] >= 0.4 * 0.5


def test_attempts_are_bounded():
    with failing(*[error(500, "oops")] * 9) as server, pytest.raises(RowFailed, match="HTTP 500: oops, 4 attempts"):
        ask(server)
    assert len(server.requests) == 4


def test_a_refused_chat_is_not_asked_again():
    with failing(error(400, "too long")) as server, pytest.raises(RowFailed, match="HTTP 400: too long"):
        ask(server)
    assert len(server.requests) == 1


MARKS = {
    "null": (Reply(text=None), "", "error"),
    "blank": (Reply(text=" \n"), " \n", "error"),
    "cut": (Reply(finish_reason="length"), "an answer", "length"),
    "cut before it began": (Reply(text=None, finish_reason="length"), "", "length"),
    "filtered": (Reply(text=None, finish_reason="content_filter"), "", "content_filter"),
    "refused": (Reply(text=None, message={"refusal": "I cannot."}), "I cannot.", "refusal"),
    "tool": (Reply(text=None, finish_reason="tool_calls"), "", "tool_calls"),
    "no reason": (Reply(finish_reason=None), "an answer", None),
}


@pytest.mark.parametrize("reply, text, reason", MARKS.values(), ids=MARKS)
def test_unusual_answers_are_kept_and_marked(reply, text, reason):
    with failing(reply) as server:
        answer = ask(server)
    assert (answer.text, answer.finish_reason) == (text, reason)
    assert len(server.requests) == 1


@pytest.mark.parametrize("padding", range(40, 220, 12))
def test_no_part_of_a_key_is_shown_wherever_a_message_is_cut(padding):
    key = "a-key-of-another-form-0123456789"
    reply = Reply(body=b"x" * padding + key.encode())
    with failing(reply) as server, pytest.raises(RowFailed) as failure:
        ask(server, api_key=key, max_retries=0)
    assert "malformed answer: no JSON" in str(failure.value) and key[:6] not in str(failure.value)


def test_counts_that_no_column_holds_are_none():
    body = {"choices": [{"message": {"content": "x"}}], "created": 2**63, "usage": {"completion_tokens": 2**31}}
    with failing(Reply(body=json.dumps(body).encode())) as server:
        answer = ask(server)
    assert answer.completion_tokens is None and answer.created < 2**40


STOPPING = {
    "key": (error(401, f"Incorrect API key provided: {KEY}"), "refuses the key in OPENAI_API_KEY"),
    "masked key": (error(401, "Incorrect API key provided: sk-ve***789"), "refuses the key in OPENAI_API_KEY"),
    "model": (error(404, "no such model"), "refuses --model=fake"),
    "model, in vLLM's words": (error(404, "The model `fake` does not exist."), "refuses --model=fake"),
    "path": (Reply(status=404, body=b'{"detail":"Not Found"}'), "has no /chat/completions .*Not Found.* lack /v1"),
    "path, in HTML": (Reply(status=404, body=b"<html>404</html>"), "has no /chat/completions .* lack /v1"),
    "model, as 400": (error(400, "no such model", "model_not_found"), "refuses --model=fake"),
    "max_tokens": (
        error(
            400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "unsupported_parameter"
        ),
        "--model=fake does not take max_tokens .*; give --limit_field=max_completion_tokens",
    ),
    "quota": (error(429, "pay first", "insufficient_quota"), "pay first"),
}


@pytest.mark.parametrize("reply, message", STOPPING.values(), ids=STOPPING)
def test_what_no_retry_mends_stops_at_once(reply, message):
    with failing(reply) as server, pytest.raises(UserError, match=message) as caught:
        ask(server)
    assert len(server.requests) == 1
    assert server.base_url in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_an_unreachable_server_is_named():
    with FakeServer() as server:
        pass
    with pytest.raises(UserError, match=f"nothing answers at --base_url={server.base_url}"):
        ask(server, max_retries=20)


def test_a_slow_server_is_told_from_none():
    slow = FakeServer(lambda prompt, attempt: Reply(seconds=0.5))
    with slow as server, pytest.raises(UserError) as caught:
        ask(server, timeout=0.1, max_retries=20)
    assert "no answer within 0.1 s); raise --requests_timeout=0.1 if the server is slow" in str(caught.value)
    assert len(server.requests) == 3


def test_a_login_in_the_url_is_not_shown():
    class Closed:
        base_url = "http://me:hunter2@127.0.0.1:9/v1"

    with pytest.raises(UserError, match=r"--base_url=http://127\.0\.0\.1:9/v1") as caught:
        ask(Closed)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", [None, "", " "])
def test_a_server_of_ones_own_needs_no_key(key):
    with FakeServer() as server:
        ask(server, api_key=key)
    assert server.keys == ["Bearer none"]


def test_a_key_from_a_file_with_a_line_end_works():
    with FakeServer() as server:
        ask(server, api_key=f"{KEY}\n")
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "url, key, message",
    [
        ("https://api.openai.com/v1", None, "OPENAI_API_KEY is not set"),
        ("127.0.0.1:8000/v1", KEY, "--base_url=127.0.0.1:8000/v1: expected a URL"),
        ("http://host:abc/v1", KEY, r"--base_url=http://host:abc/v1: Port could not .*'abc'; expected a URL such as"),
        ("http://host:70000/v1", KEY, r"--base_url=http://host:70000/v1: Port out of range .*; expected a URL"),
        ("http://host:0/v1", KEY, "--base_url=http://host:0/v1: expected a URL"),
        ("http://[::1/v1", KEY, r"--base_url=http://\[::1/v1: Invalid IPv6 URL; expected a URL"),
        ("http://me:schluessel@[::1/v1", KEY, r"--base_url=http://\[::1/v1: expected a URL"),
        ("http://ho\x7fst/v1", KEY, "--base_url=.*: expected a URL"),
        ("me:schluessel@host/v1", KEY, "--base_url=host/v1: expected a URL"),
        ("http://me:schlu/essel@host:abc/v1", KEY, "--base_url=http://host:abc/v1: expected a URL"),
        ("http://h\u00e9llo..ex/v1", KEY, r"--base_url=http://h\u00e9llo\.\.ex/v1: .+; expected a URL"),
        ("http://127.0.0.1:8000/v1", "sk-schlüssel", "OPENAI_API_KEY holds characters"),
    ],
)
def test_bad_settings_are_named(url, key, message):
    with pytest.raises(UserError, match=message) as caught:
        TeacherClient(url, "fake", RequestSettings(0.7, 1.0, 16), api_key=key)
    assert "schl" not in str(caught.value)


def test_the_fingerprint_is_of_all_that_shapes_the_answer():
    def fingerprint(model="fake", system=None, content=CHAT, fields=None, **sampling):
        values = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 16} | sampling
        options = {"api_key": None, "system": system, "fields": fields}
        teacher = TeacherClient("http://127.0.0.1:1/v1", model, RequestSettings(**values), **options)
        return teacher.fingerprint(content)

    others = [
        fingerprint(model="other"),
        fingerprint(system="Be brief."),
        fingerprint(content=[{"role": "user", "content": "Two?"}]),
        fingerprint(temperature=0.8),
        fingerprint(top_p=0.9),
        fingerprint(max_tokens=17),
        fingerprint(seed=1),
        fingerprint(temperature=None),
        fingerprint(fields={"reasoning_effort": "low"}),
    ]
    assert fingerprint() == fingerprint()
    # Another way to make it would ask, and pay for, all of a user's ledger again.
    assert fingerprint() == "11b08584e5ec278b"
    assert len({fingerprint(), *others}) == len(others) + 1


class Account:
    """An account that notes its calls."""

    def __init__(self):
        self.told = []

    async def begin(self):
        self.told.append("begin")

    def failed(self, *, billed):
        self.told.append("billed" if billed else "free")


@pytest.mark.parametrize("name, fault", [*PASSING.items(), ("504", error(504, "gateway")), ("502", error(502, "g"))])
def test_what_an_attempt_may_cost_is_told(name, fault):
    """An answer that did not arrive whole may have been made; a refused one was not."""
    account = Account()

    async def run(server):
        options = {"api_key": KEY, "first_wait": 0.01, "timeout": 0.3}
        async with TeacherClient(server.base_url, "fake", RequestSettings(0.7, 1.0, 16), **options) as teacher:
            await teacher.ask(CHAT, account=account)

    with failing(fault) as server:
        asyncio.run(run(server))
    billed = "free" if name in ("429", "500", "503") else "billed"
    assert account.told == ["begin", billed, "begin"]


def test_a_server_that_is_not_there_costs_nothing():
    account = Account()

    async def run(url):
        async with TeacherClient(url, "fake", RequestSettings(0.7, 1.0, 16), api_key=None, first_wait=0.01) as teacher:
            await teacher.ask(CHAT, account=account)

    with FakeServer() as server:
        pass
    with pytest.raises(UserError, match="nothing answers"):
        asyncio.run(run(server.base_url))
    assert account.told == ["begin", "free"] * 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_for_load_holds_back_all(status):
    async def run(server):
        limits = Limits(8)
        options = {"api_key": None, "first_wait": 0.01, "limits": limits}
        async with TeacherClient(server.base_url, "fake", RequestSettings(0.7, 1.0, 16), **options) as teacher:

            async def later(i):
                while not limits.pauses:  # until the first request was refused, however slow the machine is
                    await asyncio.sleep(0.01)
                return await teacher.ask([{"role": "user", "content": f"later {i}"}])

            await asyncio.wait_for(asyncio.gather(teacher.ask(CHAT), *map(later, range(5))), 60)
        return limits

    def behave(prompt, attempt):
        return error(status, "slow down", retry_after="1") if prompt == "One?" and attempt == 1 else Reply()

    with FakeServer(behave) as server:
        limits = asyncio.run(run(server))
    assert min(server.times[1:]) - server.times[0] >= 0.95
    assert limits.pauses == 1 and limits.allowed < 8
