"""Each fault of the proxy, as a client sees it and as the log records it."""

import email.utils
import http.client
import json
import time

import pytest

from tests.teacher import fault_proxy
from tests.teacher.fake_server import FakeServer, Reply
from tests.teacher.fault_proxy import FAULTS, FaultProxy, digest, key_of

BODY = {"model": "fake", "messages": [{"role": "user", "content": "prompt 1"}]}


def ask(proxy):
    """Status, headers and body of the reply, or the exception that a client sees."""
    connection = http.client.HTTPConnection(proxy.base_url.split("/")[2], timeout=0.3)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(BODY), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    except (OSError, http.client.HTTPException) as error:
        return error
    finally:
        connection.close()


def ended(log):
    """The log's line at the end of the only request, which the proxy writes after its reply."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if [line["event"] for line in lines] == ["asked", "ended"]:
            assert lines[0]["key"] == lines[1]["key"] == key_of(BODY)
            assert lines[0]["prompt"] == lines[1]["prompt"] == digest("prompt 1")
            return lines[1]
        time.sleep(0.01)
    raise AssertionError(log.read_text())


@pytest.fixture
def strike(tmp_path, monkeypatch):
    """Asks once through a proxy with one fault, or none; returns the reply and the log's line."""

    def run(fault, rate=1.0, reply=None):
        if fault:
            monkeypatch.setattr(fault_proxy, "FAULTS", {fault: FAULTS[fault]})
        log = tmp_path / "log.jsonl"
        with FakeServer(lambda prompt, attempt: reply or Reply(text="an answer")) as server:
            with FaultProxy(server.base_url, log, rate=rate) as proxy:
                seen = ask(proxy)
                line = ended(log)
            assert len(server.requests) == (line["status"] is not None)
        assert line["fault"] == fault
        return seen, line

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_billed(strike, fault):
    line = strike(fault)[1]
    assert line["billed"] == FAULTS[fault]
    assert line["delivered"] == (fault == "content: null")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("429", 429),
        ("429 with seconds", 429),
        ("429 with a date", 429),
        ("500", 500),
        ("500 after the answer", 500),
        ("503", 503),
    ],
)
def test_statuses(strike, fault, status):
    seen, headers, body = strike(fault)[0]
    assert seen == status and "injected" in json.loads(body)["error"]["message"]
    after = headers["Retry-After"]
    if fault == "429 with seconds":
        assert after == "1"
    elif fault == "429 with a date":
        assert -1 < email.utils.parsedate_to_datetime(after).timestamp() - time.time() < 2
    else:
        assert after is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("hold", TimeoutError),
        ("hold after the answer", TimeoutError),
        ("drop", http.client.RemoteDisconnected),
        ("reset after the answer", ConnectionResetError),
        ("drop in the body", http.client.IncompleteRead),
    ],
)
def test_broken_connections(strike, fault, error):
    assert type(strike(fault)[0]) is error


def test_spoilt_bodies(strike):
    status, headers, body = strike("truncated body")[0]
    assert status == 200 and int(headers["Content-Length"]) == len(body)
    with pytest.raises(ValueError):
        json.loads(body)


def test_a_page_in_place_of_json(strike):
    status, headers, body = strike("not JSON")[0]
    assert status == 200 and headers["Content-Type"] == "text/html" and body.startswith(b"<html>")


def test_empty_choices(strike):
    assert json.loads(strike("empty choices")[0][2])["choices"] == []


def test_no_content(strike):
    (_, _, body), line = strike("content: null")
    assert json.loads(body)["choices"][0]["message"]["content"] is None
    assert line["answer"] == digest(None)


def test_without_a_fault_the_upstream_is_seen(strike):
    (status, _, body), line = strike(None, rate=0.0)
    assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == "an answer"
    assert (line["billed"], line["delivered"], line["answer"]) == (True, True, digest("an answer"))


def test_the_upstreams_own_failure_is_passed_on(strike):
    (status, _, body), line = strike(None, rate=0.0, reply=Reply(status=418, body=b"tea"))
    assert (status, body, line["status"], line["billed"], line["delivered"]) == (418, b"tea", 418, False, False)


def test_a_rate_is_a_part(tmp_path):
    with pytest.raises(ValueError, match="rate=30"):
        FaultProxy("http://127.0.0.1:9", tmp_path / "log", rate=30)


def test_the_proxy_draws_the_same_faults_in_any_order(tmp_path):
    bodies = [{"messages": [{"role": "user", "content": f"prompt {i}"}]} for i in range(400)]
    drawn = []
    for run, order in enumerate((bodies, bodies[::-1])):
        with FaultProxy("http://127.0.0.1:9", tmp_path / f"{run}.jsonl", rate=0.3, seed=5) as proxy:
            drawn.append({key_of(body): [proxy.ask(body)[1] for _ in range(3)] for body in order})
    assert drawn[0] == drawn[1]
    faults = [fault for row in drawn[0].values() for fault in row]
    assert set(faults) == {None, *FAULTS}
    assert abs(sum(fault is not None for fault in faults) / len(faults) - 0.3) < 0.05
