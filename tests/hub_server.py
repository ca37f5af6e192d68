"""The part of the Hugging Face hub on loopback that takes uploads, through its own client."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "hf_test"


class HubServer:
    """A hub inside its context. `fail` maps the beginning of a path to the status that requests to it get."""

    def __init__(self):
        self.user: dict = {"name": "ada", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}
        self.repositories: dict[str, dict] = {}  # name -> {"private": bool, "files": {path: bytes}}
        self.objects: dict[str, bytes] = {}  # of LFS, by their hashes
        self.commits: list[str] = []  # titles
        self.requests: list[str] = []  # "METHOD path"
        self.fail: dict[str, int] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def files(self, name: str) -> dict[str, bytes]:
        """The files of a repository."""
        return self.repositories[name]["files"]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes the hub's client talk to this hub, with a valid token."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0]
        body = self._body()
        hub.requests.append(f"{self.command} {path}")
        headers: dict[str, str] = {}
        if failing := [status for start, status in hub.fail.items() if path.startswith(start)]:
            status, content = failing[0], {"error": "as the test wants"}
        elif not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, content = 401, {"error": "Invalid username or password."}
        else:
            status, content = self._route(hub, path, body)
            if status == 404:
                headers["X-Error-Code"] = "RepoNotFound"
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Type": "application/json", "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, hub: HubServer, path: str, body: bytes) -> tuple[int, object]:
        if path == "/api/whoami-v2":
            return 200, hub.user
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            url = f"{hub.endpoint}/{name}"
            if name in hub.repositories:
                return 409, {"error": "You already created this model repo", "url": url}
            private = asked.get("private", asked.get("visibility") == "private")
            hub.repositories[name] = {"private": private, "files": {}}
            return 200, {"url": url}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            return 200, {}
        found = re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git/info/lfs/objects/(batch))?(/.*)?", path)
        name, batch, rest = found.groups()
        if name not in hub.repositories:
            return 404, {"error": "Repository not found"}
        repository = hub.repositories[name]
        files = repository["files"]
        if batch:
            return 200, {"objects": [self._object(hub, one) for one in json.loads(body)["objects"]]}
        if rest == "/preupload/main":
            modes = {True: "lfs", False: "regular"}
            asked = json.loads(body)["files"]
            return 200, {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": modes[one["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                    }
                    for one in asked
                ]
            }
        if rest == "/commit/main":
            for line in body.decode().splitlines():
                change = json.loads(line)
                value = change["value"]
                if change["key"] == "header":
                    hub.commits.append(value["summary"])
                elif change["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                else:
                    assert change["key"] == "deletedFile"
                    del files[value["path"]]
            return 200, {"commitUrl": f"{hub.endpoint}/{name}/commit/1", "commitOid": "1" * 40}
        if rest and rest.startswith("/tree/"):
            return 200, [{"type": "file", "path": file, "size": len(data), "oid": "b"} for file, data in files.items()]
        entry = {"id": name, "sha": "a" * 40, "private": repository["private"]}
        return 200, entry | {"siblings": [{"rfilename": file} for file in files]}

    @staticmethod
    def _object(hub: HubServer, asked: dict) -> dict:
        """What is there already gets no action."""
        if asked["oid"] in hub.objects:
            return asked
        return asked | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{asked['oid']}"}}}

    def log_message(self, *_: object) -> None:
        """Prints nothing."""
