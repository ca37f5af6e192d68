"""Finds a model by its name: a folder on this machine, or an id of the Hugging Face hub."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

from gadjax.errors import UserError, first_line
from gadjax.files import expand

TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
MODEL_FILES = ("*.safetensors", *TOKENIZER_FILES)

# Copies of the weights in other formats: original/, onnx/, Mistral's consolidated files.
_IGNORED = ("*/*", "consolidated*")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_directory(name: str | os.PathLike[str], files: Sequence[str]) -> pathlib.Path:
    """The directory of a model: `name` itself if it is a directory, or else a local copy of the hub's model `name`.

    Args:
      name: a directory or hub id.
      files: patterns of the files to download from the hub.

    Raises:
      UserError: `name` is neither, or the hub does not provide it and no earlier download is cached.
    """
    path = expand(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}: a file; give the directory that it lies in")
    if not _ID.fullmatch(os.fspath(name)):
        raise UserError(f"{name}: no such directory; give a Hugging Face directory or a hub id such as org/model")
    from huggingface_hub import snapshot_download  # slow to import, and not needed for a directory

    try:
        return pathlib.Path(snapshot_download(os.fspath(name), allow_patterns=[*files], ignore_patterns=[*_IGNORED]))
    except Exception as error:  # the hub's own errors, and those of its HTTP client: time-outs, proxies, TLS
        raise UserError(
            f"{name}: no such directory, and the hub did not provide it either ({first_line(error)})"
        ) from error
