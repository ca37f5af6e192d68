"""Models by name: folders, hub ids, and one line for every way that the hub fails."""

from __future__ import annotations

import fnmatch
import logging
import pathlib
import time

import pytest

from gadjax.data import hub_dataset
from gadjax.data.tokenizer import load_tokenizer
from gadjax.errors import UserError
from gadjax.hub import MODEL_FILES, TOKENIZER_FILES, local_directory
from gadjax.models.weights import resolve_model


def test_folders_and_what_is_neither(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("")
    assert local_directory(tmp_path / "model", MODEL_FILES) == tmp_path / "model"
    assert resolve_model("~/model") == tmp_path / "model"
    for name, message in [
        (str(tmp_path / "file"), "file: a file; give the directory that it lies in"),
        (str(tmp_path / "absent"), "absent: no such directory; give a Hugging Face directory or a hub id"),
        ("gadjax-tests/absent", "gadjax-tests/absent: no such directory, and the hub did not provide it"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve_model(name)


class TimeOut(Exception):
    """Like the errors of the hub's HTTP client: neither OSError nor ValueError."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [(TimeOut("timed out\nsee the log"), "timed out"), (TimeOut(), "TimeOut"), (OSError("no space"), "no space")],
)
@pytest.mark.parametrize("load", [resolve_model, load_tokenizer])
def test_every_failure_of_the_hub_is_one_line(monkeypatch, error, reason, load):
    import huggingface_hub

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        load("org/model")
    assert str(caught.value) == (
        f"org/model: no such directory, and the hub did not provide it either ({reason}); without a network, give a "
        "directory"
    )


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that nothing listens for, an empty cache, and no wait between attempts."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def warnings():
    """What the hub's client logs, at the levels that it shows."""
    logger, found = logging.getLogger("huggingface_hub"), []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            lambda: resolve_model("org/model"),
            "^org/model: no such directory, and the hub .*; without a network, give a",
        ),
        (
            lambda: hub_dataset.files("hf:org/data/train:question"),
            "^hf:org/data/train:question: the hub does .*; without a network",
        ),
    ],
    ids=["model", "dataset"],
)
def test_without_a_network_there_is_one_line_and_no_warning(no_network, warnings, load, message):
    with pytest.raises(UserError, match=message) as caught:
        load()
    assert "refused" in str(caught.value) and "\n" not in str(caught.value)
    assert warnings == []


def test_the_client_s_verbosity_is_the_user_s_where_it_is_set(monkeypatch, no_network, warnings):
    """The control of the test above: the client has warnings of each attempt."""
    monkeypatch.setenv("HF_HUB_VERBOSITY", "warning")
    with pytest.raises(UserError):
        hub_dataset.files("hf:org/data/train:question")
    assert len([line for line in warnings if "127.0.0.1:9" in line]) > 2


def test_only_files_that_are_read_are_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def download(name, allow_patterns, ignore_patterns):
        asked.update(name=name, allow=allow_patterns, ignore=ignore_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    small = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"]
    small += ["vocab.json", "merges.txt", "chat_template.jinja", "special_tokens_map.json"]
    weights = ["model.safetensors", "model-00001-of-00002.safetensors"]
    useless = ["pytorch_model.bin", "consolidated.safetensors", "original/params.json", "onnx/model.onnx", "a.gguf"]
    for files, needed in ((MODEL_FILES, [*small, *weights]), (TOKENIZER_FILES, small)):
        assert local_directory("org/a-model", files) == pathlib.Path(tmp_path) and asked["name"] == "org/a-model"
        wanted = {
            file
            for file in (*small, *weights, *useless)
            if any(fnmatch.fnmatch(file, pattern) for pattern in asked["allow"])
            and not any(fnmatch.fnmatch(file, pattern) for pattern in asked["ignore"])
        }
        assert wanted == set(needed)
