"""Datasets of the hub by their Parquet files, from a fake hub on loopback."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.data import hub_dataset
from gadjax.data.dataset_name import parse
from gadjax.data.prompts import read_prompts
from gadjax.data.schema import read_rows
from gadjax.errors import UserError

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And then?"},
]


@pytest.fixture
def folder(tmp_path):
    """A folder laid out as a dataset repository of the hub."""
    for name, texts in {
        "data/train-00001-of-00002": ["c"],
        "data/train-00000-of-00002": ["a", "b"],
        "test": ["d"],
    }.items():
        path = tmp_path / "set" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        chats = [[*CHAT, {"role": "assistant", "content": text}] for text in texts]
        pq.write_table(pa.table({"question": texts, "messages": chats, "n": [1] * len(texts)}), path)
    return tmp_path / "set"


def texts(name):
    return [prompt.content[-1]["content"] for prompt in read_prompts(name)]


def test_a_folder_of_parquet_files(folder):
    assert texts(f"hf:{folder}/train:question") == ["a", "b", "c"]
    assert texts(f"hf:{folder}/test:question") == ["d"]


def test_of_a_chat_what_follows_the_last_user_turn_is_left_out(folder):
    prompts = read_prompts(f"hf:{folder}/test:messages")
    assert prompts[0].content == CHAT


def test_without_a_field_the_columns_tell(folder):
    """`messages` hold answers too, and `question` here none."""
    assert [prompt.content for prompt in read_prompts(f"hf:{folder}/train")] == [CHAT] * 3
    rows = read_rows(f"hf:{folder}/train")
    assert [rows.answer(i) for i in range(3)] == ["a", "b", "c"] and rows.messages(0) == CHAT


def test_rows_of_a_teacher(tmp_path, write):
    """What a run trains on may be a dataset as well."""
    for name, texts in {"train-00000-of-00002": ["a", "b"], "train-00001-of-00002": ["c"], "test": ["d"]}.items():
        write([f"prompt {text}" for text in texts], texts, name=f"{name}.parquet")
    rows = read_rows(f"hf:{tmp_path}/train")
    assert [rows.answer(index) for index in range(len(rows))] == ["a", "b", "c"]
    with pytest.raises(UserError, match="columns of fixed names: leave out :content"):
        read_rows(f"hf:{tmp_path}/train:content")


def test_names():
    assert parse("hf:o/n/train:a.b") == ("o/n", "train", "a.b")
    assert parse("hf:o/n/config/train") == ("o/n/config", "train", None)
    for name in ("hf:", "hf:train", "hf:o/n/train:", "hf:o/n/tr ain:a"):
        with pytest.raises(UserError, match="expected hf:OWNER/NAME/SPLIT"):
            parse(name)


@pytest.mark.parametrize(
    "names, config, split, expected",
    [
        (["default/train/0000.parquet", "default/train/0001.parquet"], None, "train", [0, 1]),
        (["de/train/0000.parquet", "en/train/0000.parquet"], "de", "train", [0]),
        (["data/train-00000-of-00001-a1b2.parquet"], None, "train", [0]),
        (["a/test.parquet", "a/train_sft-0-of-1.parquet"], None, "train_sft", [1]),
        (["de/train.parquet", "train.parquet"], None, "train", [1]),
    ],
)
def test_files_of_a_split(names, config, split, expected):
    assert hub_dataset._choose("hf:x", names, config, split) == [names[i] for i in expected]


@pytest.mark.parametrize(
    "names, config, message",
    [
        ([], None, "the dataset has no Parquet files"),
        (["en/train/0.parquet", "de/train/0.parquet"], None, "name one of its configs, en, de"),
        (["en/train/0.parquet"], "fr", "name one of its configs, en"),
        (["default/partial-train/0.parquet"], None, "no split 'train'; there is partial-train"),
    ],
)
def test_what_is_not_there_is_named(names, config, message):
    with pytest.raises(UserError, match=message):
        hub_dataset._choose("hf:x", names, config, "train")


def test_bad_fields_are_named(folder):
    for name, message in [
        (f"hf:{folder}/train:absent", "no column `absent`; the file has question, messages, n"),
        (f"hf:{folder}/test:n", "row 0: `n` is int; expected text, or a chat"),
        (f"hf:{folder}/valid:question", "no split 'valid'; there is train, test"),
        ("hf:/no/such/folder/train:x", "no such folder, and no id of the hub's datasets"),
    ]:
        with pytest.raises(UserError, match=message):
            read_prompts(name)


class Hub(BaseHTTPRequestHandler):
    """Serves what the hub's client requests: the list of a dataset's files at a revision, and the files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        sha = "a" * 40
        files = {f"default/train/{i:04}.parquet": file.read_bytes() for i, file in enumerate(self.server.files)}
        headers = {"X-Repo-Commit": sha}
        status, content = 404, b'{"error": "Repository not found"}'
        if path.startswith("/api/datasets/org/set/revision/"):
            if self.server.converted == ("convert" in path):
                entries = [{"rfilename": name} for name in files]
                status, content = 200, json.dumps({"id": "org/set", "sha": sha, "siblings": entries}).encode()
            else:
                headers["X-Error-Code"] = "RevisionNotFound"
        elif path == "/api/datasets/org/set" and not self.server.converted:
            entries = [{"rfilename": name} for name in files]
            status, content = 200, json.dumps({"id": "org/set", "sha": sha, "siblings": entries}).encode()
        elif (name := path.partition("/datasets/org/set/resolve/")[2].split(".parquet")[0]) and "/default/" in path:
            name = f"default{path.partition('/default')[2]}"
            status, content = 200, files[name]
            headers["ETag"] = f'"{len(content):064}"'
        elif path.startswith("/api/datasets/org/set/tree/"):
            if self.server.converted == ("convert" in path):
                entries = [
                    {"type": "file", "path": name, "size": len(file), "oid": "b"} for name, file in files.items()
                ]
                status, content = 200, json.dumps(entries).encode()
            else:
                headers["X-Error-Code"] = "RevisionNotFound"
        elif path.startswith("/api/"):
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *_):
        """Prints nothing."""


@pytest.mark.parametrize("converted", [True, False], ids=["converted by the hub", "its own files"])
def test_the_hub_through_its_own_client(repo, folder, tmp_path, converted):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files, server.converted = sorted(folder.glob("data/*")), converted
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = (
            "import sys\n"
            "from gadjax.data.prompts import read_prompts\n"
            "from gadjax.errors import UserError\n"
            "print([prompt.content[0]['content'] for prompt in read_prompts('hf:org/set/train:question')])\n"
            "try:\n    read_prompts('hf:org/absent/train:question')\n"
            "except UserError as error:\n    print(error)\n"
            "print(sorted({'datasets', 'pandas', 'torch', 'tensorflow'} & set(sys.modules)))\n"
        )
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        finished = subprocess.run(
            [sys.executable, "-c", code], cwd=repo, env=environment, capture_output=True, text=True, timeout=120
        )
        server.shutdown()
    assert finished.returncode == 0, finished.stderr
    first, second, third = finished.stdout.splitlines()
    assert first == "['a', 'b', 'c']"
    assert second.startswith("hf:org/absent/train:question: the hub does not give it (")
    assert third == "[]"
