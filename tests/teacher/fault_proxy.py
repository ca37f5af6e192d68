"""A reverse proxy on loopback that injects faults between a client and any OpenAI-compatible server.

    python -m tests.teacher.fault_proxy --upstream=http://127.0.0.1:8102 --log=faults.jsonl --rate=0.3 --seed=0

prints its own base URL on the first line and serves until it is stopped. In a test: `with FaultProxy(...) as proxy`.

Which fault strikes is drawn from the seed, the request's body and how often that body came before, so it does not
depend on the order in which requests arrive. Some faults strike instead of the upstream's answer, others spoil an
answer that the upstream has given, and billed, already.

The log has two lines of JSON for each request: {"event": "asked"} when it arrives and {"event": "ended"} when the
proxy is done with it, with `billed` (the upstream answered it), `fault` (a name of `FAULTS`, or null) and
`delivered` (a whole, well-formed answer left for the client; `content: null` is one).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import email.utils
import hashlib
import http.client
import json
import pathlib
import random
import socket
import struct
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The name of each fault, and whether the upstream has answered before it strikes.
FAULTS = {
    "429 with seconds": False,
    "429 with a date": False,
    "429": False,
    "500": False,
    "500 after the answer": True,
    "503": False,
    "hold": False,
    "hold after the answer": True,
    "drop": False,
    "reset after the answer": True,
    "drop in the body": True,
    "truncated body": True,
    "not JSON": False,
    "empty choices": True,
    "content: null": True,
}
DELIVERED = ("content: null",)  # a whole answer all the same, which the client keeps
_PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def key_of(body: dict[str, Any]) -> str:
    """A digest of a request's body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def digest(text: str | None) -> str:
    """A digest of a text for the log; None counts as empty."""
    return hashlib.sha256((text or "").encode()).hexdigest()[:16]


@dataclasses.dataclass
class _Answer:
    """The upstream server's reply."""

    status: int
    kind: str  # Content-Type
    body: bytes


class FaultProxy:
    """A proxy that runs inside its context. Clients use `base_url`; `log` gets a line as a request comes or ends."""

    def __init__(
        self,
        upstream: str,
        log: pathlib.Path,
        *,
        rate: float,
        seed: int = 0,
        hold: float = 600.0,
        retry_after: int = 1,
    ):
        """
        Args:
          upstream: URL of the server; paths are those of the client's requests.
          log: JSONL file to append to.
          rate: part of the requests that a fault strikes.
          seed: of the faults.
          hold: seconds that a held connection stays open at most; it ends when the client closes it.
          retry_after: seconds that Retry-After asks for.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate}: expected a part between 0 and 1")
        self.rate, self.seed, self.hold, self.retry_after = rate, seed, hold, retry_after
        url = urllib.parse.urlsplit(upstream)
        self._host, self._port = url.hostname, url.port or 80
        self._seen: collections.Counter[str] = collections.Counter()
        self._requests = 0
        self._lock = threading.Lock()
        self._log = log.open("a")
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            self._log.close()

    def ask(self, body: dict[str, Any]) -> tuple[dict[str, Any], str | None, random.Random]:
        """Logs a request; returns its fields for the log, its fault, and the random numbers for the fault's details."""
        key = key_of(body)
        with self._lock:
            self._seen[key] += 1
            self._requests += 1
            named = {"request": self._requests, "key": key, "prompt": digest(body["messages"][-1]["content"])}
            named["attempt"] = self._seen[key]
        dice = random.Random(f"{self.seed} {key} {named['attempt']}")
        fault = dice.choice(list(FAULTS)) if dice.random() < self.rate else None
        self.write({"event": "asked", "time": time.time(), **named, "fault": fault})
        return named, fault, dice

    def forward(self, path: str, body: bytes, headers: dict[str, str]) -> _Answer:
        """The upstream server's reply to one request.

        Raises:
          RuntimeError: the upstream cannot be reached, which is no fault of ours.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self.hold)
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                return _Answer(response.status, response.getheader("Content-Type", ""), response.read())
            except (OSError, http.client.HTTPException) as error:
                raise RuntimeError(f"the upstream at {self._host}:{self._port} failed: {error!r}") from error

    def write(self, row: dict[str, Any]) -> None:
        with self._lock:
            if not self._log.closed:
                self._log.write(json.dumps(row) + "\n")
                self._log.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: FaultProxy

    def shutdown_request(self, request: Any) -> None:
        """Closes at once. The parent class sends FIN first, which would not be a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Shows errors, except those of clients that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        owner: FaultProxy = self.server.owner
        body = self.rfile.read(int(self.headers["Content-Length"]))
        named, fault, dice = owner.ask(json.loads(body))
        row = {"event": "ended", **named, "fault": fault, "billed": False, "delivered": False, "status": None}
        try:
            if fault is not None and not FAULTS[fault]:
                self._instead(fault)
                return
            headers = {"Content-Type": "application/json", "Authorization": self.headers.get("Authorization", "")}
            answer = owner.forward(self.path, body, headers)
            row["status"], row["billed"] = answer.status, answer.status == 200
            if answer.status != 200:  # the upstream's own failure: the client's to see
                self._send(answer.status, answer.body, {"Content-Type": answer.kind})
                return
            content = json.loads(answer.body)
            if fault in DELIVERED:
                content["choices"][0]["message"]["content"] = None
                answer.body = json.dumps(content).encode()
            row["answer"] = digest(content["choices"][0]["message"]["content"])
            if fault is None or fault in DELIVERED:
                self._send(200, answer.body)
                row["delivered"] = True
            else:
                self._spoil(fault, content, answer.body, dice)
        except ConnectionError:
            self.close_connection = True  # the client was killed
        finally:
            owner.write({"time": time.time(), **row})

    def _instead(self, fault: str) -> None:
        """Causes a fault before the upstream server is asked."""
        if fault == "hold":
            self._hold()
        elif fault == "drop":
            self.close_connection = True
        elif fault == "not JSON":
            self._send(200, _PAGE, {"Content-Type": "text/html"})
        else:
            seconds = self.server.owner.retry_after
            after = {
                "429 with seconds": str(seconds),
                "429 with a date": email.utils.formatdate(time.time() + seconds, usegmt=True),
            }.get(fault)
            self._error(int(fault[:3]), {"Retry-After": after} if after else {})

    def _spoil(self, fault: str, content: dict[str, Any], body: bytes, dice: random.Random) -> None:
        """Causes a fault in the upstream server's answer."""
        part = body[: dice.randrange(1, len(body) - 1)]
        if fault == "500 after the answer":
            self._error(500)
        elif fault == "hold after the answer":
            self._hold()
        elif fault == "reset after the answer":
            # Closing with a linger of 0 s sends RST in place of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif fault == "drop in the body":
            self._send(200, part, {"Content-Length": str(len(body))})
            self.close_connection = True
        elif fault == "truncated body":
            self._send(200, part)
        else:
            self._send(200, json.dumps(content | {"choices": []}).encode())

    def _hold(self) -> None:
        """Waits until the client gives up."""
        self.close_connection = True
        self.connection.settimeout(self.server.owner.hold)
        with contextlib.suppress(TimeoutError):
            self.connection.recv(1)

    def _error(self, status: int, headers: dict[str, str] | None = None) -> None:
        said = {"error": {"message": f"injected {status}", "code": None, "type": "error", "param": None}}
        self._send(status, json.dumps(said).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        named = {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="URL of the server, without a path")
    parser.add_argument("--log", required=True, type=pathlib.Path, help="JSONL file to append to")
    parser.add_argument("--rate", type=float, default=0.3, help="part of the requests that a fault strikes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hold", type=float, default=600.0, help="seconds that a held connection stays open at most")
    args = parser.parse_args()
    with FaultProxy(args.upstream, args.log, rate=args.rate, seed=args.seed, hold=args.hold) as proxy:
        print(proxy.base_url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
