"""The files of a Hugging Face directory: which of them hold the weights, and a fingerprint of these."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from gadjax.errors import UserError
from gadjax.files import parse_json

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

POOLING = "gadjax_pooling"  # field of a token classifier's config.json, where its score is not its last token's value

_PICKLES = ("*.bin*", "*.pt", "*.pth")
_BLOCKS, _BLOCK = 64, 4096  # of a file, evenly spaced, and the bytes of each; training changes every tensor


def weight_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a Hugging Face directory, sorted by name.

    Raises:
      UserError: there are none, or the index names a file that is not there.
    """
    single, index = path / SINGLE_FILE, path / INDEX_FILE
    if single.exists():
        return [single]
    if not index.exists():
        pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
        if pickles:
            raise UserError(
                f"{path}: the weights are pickled only ({pickles[0]}), and unpickling may run code; convert "
                "them to safetensors with transformers' save_pretrained"
            )
        raise UserError(f"{path}: no weights; a checkpoint holds {SINGLE_FILE}, or {INDEX_FILE} and its files")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map is missing or empty; fetch the file again")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise UserError(f"{index}: weight_map has {file!r} for {name}, not a file's name; fetch the file again")
    files = [path / name for name in sorted(set(weight_map.values()))]
    if absent := [file.name for file in files if not file.exists()]:
        raise UserError(f"{index}: names {some(absent)}, which is not there; fetch the checkpoint again")
    return files


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a model's directory.

    Raises:
      UserError: the file is missing, or does not hold an object.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a model's directory holds config.json and its weights") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object; fetch it again")
    return content


def pooling_of(hf_config: Mapping[str, Any], where: str) -> Literal["last", "mean"]:
    """How a token classifier's values become its score, from its config.json; of `where`, for messages.

    "last": its value at the last token of an answer. "mean": the mean of its values at all tokens of the answer.
    """
    found = hf_config.get(POOLING, "last")
    if found not in ("last", "mean"):
        raise UserError(f"{where}: {POOLING} is {found!r}; expected 'last' or 'mean'")
    return found


def weights_fingerprint(path: pathlib.Path) -> str:
    """A hash of a Hugging Face directory's weights: of each file's size and some of its blocks, the header included.

    Raises:
      UserError: there are no weights, or they cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in weight_files(path):
        try:
            size = name.stat().st_size
            digest.update(f"{name.name} {size}\n".encode())
            with open(name, "rb") as file:
                for block in range(_BLOCKS):
                    at = max(size - _BLOCK, 0) * block // (_BLOCKS - 1)
                    digest.update(os.pread(file.fileno(), _BLOCK, at))
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def some(names: Iterable[str], count: int = 4) -> str:
    """The first `count` names in alphabetical order, for a message."""
    names = sorted(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
