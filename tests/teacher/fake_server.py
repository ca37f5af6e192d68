"""An OpenAI-compatible chat API on loopback that answers or fails as a test wants."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Reply:
    """A reply of the server; an answer by default."""

    text: str | None = "an answer"
    finish_reason: str | None = "stop"
    message: dict = dataclasses.field(default_factory=dict)  # more fields of the message
    tokens: int = 3  # of the answer, as the server counts them
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes | None = None  # instead of the answer
    drop: bool = False  # close the connection half-way through the body
    seconds: float = 0.0  # before anything is sent

    def encode(self) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.text} | self.message
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "fake",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": self.tokens, "total_tokens": 7 + self.tokens},
        }
        return json.dumps(answer).encode()


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in OpenAI's form, with a Retry-After header if `retry_after` is given."""
    body = json.dumps({"error": {"message": message, "code": code, "type": "error", "param": None}})
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Reply(status=status, body=body.encode(), headers=named)


class FakeServer:
    """A server that runs inside its context. `behave(prompt, attempt)` makes each reply; attempts count from 1."""

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Speaks HTTP."""
        return _Handler

    def __init__(self, behave: Callable[[str, int], Reply] | None = None):
        self.behave = behave or (lambda prompt, attempt: Reply(text=f"answer to {prompt}"))
        self.requests: list[dict] = []  # bodies, in the order of arrival
        self.keys: list[str] = []  # Authorization headers
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), self.handler)
        self._http.owner = self
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def prompts(self) -> list[str]:
        """The last user turn of every request, in the order of arrival."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def receive(self, request: dict, key: str) -> Reply:
        prompt = request["messages"][-1]["content"]
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            self.times.append(time.monotonic())
            attempt = self.prompts.count(prompt)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        reply = self.behave(prompt, attempt)
        time.sleep(reply.seconds)
        return reply

    def finish(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: FakeServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each response waits for an acknowledgement

    def do_POST(self) -> None:
        owner = self.server.owner
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = owner.receive(request, self.headers.get("Authorization", ""))
        try:
            body = reply.encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.drop else body)
            self.wfile.flush()
            self.close_connection = reply.drop
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed
        finally:
            owner.finish()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""
