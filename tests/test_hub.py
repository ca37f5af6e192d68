"""Models by name: folders, hub ids, and one line for every way that the hub fails."""

from __future__ import annotations

import fnmatch
import pathlib

import pytest

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
    assert str(caught.value) == f"org/model: no such directory, and the hub did not provide it either ({reason})"


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
