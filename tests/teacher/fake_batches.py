"""A Batch API on loopback, with files, batches and results; it makes results from the fake chat API's replies."""

from __future__ import annotations

import email
import email.policy
import json
import urllib.parse
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from tests.teacher.fake_server import FakeServer, Reply


class FakeBatches(FakeServer):
    """A context manager. `behave(prompt, attempt)` makes each result of a batch; `drop` is one that expired.

    Attributes:
      polls: looks at a batch until it has ended.
      event: called with (method, path, "before" or "after" the request is carried out); may kill the client.
      fault: called with (method, path); a `Reply` that it gives is sent instead of carrying the request out, after it
        where its `seconds` are 1.
      end: the status in which batches end.
      lost: prompts without any result.
      page: entries of a list in one response.
    """

    def __init__(self, behave: Callable[[str, int], Reply] | None = None):
        super().__init__(behave)
        self.files: dict[str, dict] = {}
        self.batches: dict[str, dict] = {}
        self.lost: tuple[str, ...] = ()
        self.polls, self.page, self.end, self.errors = 2, 2, "completed", None
        self.event = lambda method, path, when: None
        self.fault = lambda method, path: None
        self.bodies: list[dict] = []  # of created batches
        self.keys_seen: set[str] = set()

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _BatchHandler

    def handle(self, method: str, path: str, body: bytes, content_type: str) -> dict | bytes:
        """Handles one request."""
        url = urllib.parse.urlsplit(path)
        parts = url.path.removeprefix("/v1/").split("/")
        query = dict(urllib.parse.parse_qsl(url.query))
        with self._lock:
            match method, *parts:
                case "POST", "files":
                    return self._upload(body, content_type)
                case "GET", "files":
                    return self._listed([file for file in self.files.values()], query)
                case "GET", "files", name, "content":
                    return self.files[name]["content"]
                case "POST", "batches":
                    return self._create(json.loads(body))
                case "GET", "batches":
                    return self._listed(list(self.batches.values()), query)
                case "GET", "batches", name:
                    return self._look(self.batches[name])
        raise AssertionError(f"{method} {path}: not of the Batch API")

    def _listed(self, entries: list[dict], query: dict) -> dict:
        """A page of a list, the newest entry first."""
        entries = [{k: v for k, v in entry.items() if k != "content"} for entry in reversed(entries)]
        if "after" in query:
            entries = entries[[entry["id"] for entry in entries].index(query["after"]) + 1 :]
        return {"object": "list", "data": entries[: self.page], "has_more": len(entries) > self.page}

    def _upload(self, body: bytes, content_type: str) -> dict:
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        form = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        assert parts["purpose"].get_payload(decode=True) == b"batch"
        return self._file(parts["file"].get_filename(), parts["file"].get_payload(decode=True))

    def _file(self, filename: str, content: bytes) -> dict:
        name = f"file-{len(self.files)}"
        self.files[name] = {"id": name, "filename": filename, "purpose": "batch", "content": content}
        return {"id": name, "filename": filename, "bytes": len(content)}

    def _create(self, body: dict) -> dict:
        self.bodies.append(body)
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self.files[body["input_file_id"]]["content"].splitlines()]
        assert all(line["method"] == "POST" and line["url"] == "/v1/chat/completions" for line in lines)
        name = f"batch_{len(self.batches)}"
        output, errors = [], []
        if self.end != "failed":
            for line in reversed(lines):  # results come in any order
                self.requests.append(line["body"])
                prompt = line["body"]["messages"][-1]["content"]
                if prompt in self.lost:
                    continue
                reply = self.behave(prompt, self.prompts.count(prompt))
                result = {"id": "r", "custom_id": line["custom_id"], "error": None, "response": None}
                if reply.drop:
                    result["error"] = {
                        "code": "batch_expired",
                        "message": "This request could not be executed.",
                    }
                else:
                    result["response"] = {"status_code": reply.status, "body": json.loads(reply.encode())}
                (output if reply.status == 200 and not reply.drop else errors).append(json.dumps(result))
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "status": "validating",
            "metadata": body["metadata"],
            "looks": 0,
            "results": (output, errors),
            "input_file_id": body["input_file_id"],
            "errors": self.errors,
        }
        return {k: v for k, v in self.batches[name].items() if k != "results"}

    def _look(self, batch: dict) -> dict:
        batch["looks"] += 1
        if batch["looks"] < self.polls:
            return batch | {"status": "in_progress", "results": None}
        for field, lines in zip(("output_file_id", "error_file_id"), batch["results"], strict=True):
            if lines and field not in batch:
                batch[field] = self._file(field, "\n".join(lines).encode())["id"]
        batch["status"] = self.end
        return batch | {"results": None}

    @property
    def asked_again(self) -> dict[str, int]:
        """The prompts that were asked more than once."""
        return {prompt: count for prompt, count in Counter(self.prompts).items() if count > 1}


class _BatchHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each response waits for an acknowledgement

    def do_POST(self) -> None:
        self._serve("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        self._serve("GET", b"")

    def _serve(self, method: str, body: bytes) -> None:
        owner = self.server.owner
        owner.keys_seen.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        owner.event(method, path, "before")
        fault = owner.fault(method, path)
        if fault is None or fault.seconds:
            answer = owner.handle(method, self.path, body, self.headers.get("Content-Type", ""))
        owner.event(method, path, "after")
        if fault is None:
            fault = Reply(body=answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        content = fault.encode()
        try:
            self.send_response(fault.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault.drop else content)
            self.close_connection = fault.drop
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed

    def log_message(self, *_: object) -> None:
        """Prints nothing."""
