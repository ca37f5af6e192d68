"""Writes parameters as a Hugging Face directory, which transformers loads with identical logits."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from gadjax.errors import UserError
from gadjax.models.adapters import Adapters, fetch, write_peft
from gadjax.models.architecture import CAUSAL_LM, TOKEN_CLASSIFICATION, ModelConfig
from gadjax.models.hf_files import INDEX_FILE, POOLING, SINGLE_FILE
from gadjax.models.hf_tensors import is_stacked, tensors_of
from gadjax.models.lora import Params
from gadjax.models.weights import named_leaves
from gadjax.parallel import processes
from gadjax.version import __version__

# This file marks a directory as an export, which may be replaced.
MARK = "gadjax.json"
_CLASSIFIER_FIELDS = ("num_labels", "id2label", "label2id", "problem_type", "classifier_dropout", POOLING)


def save_pretrained(
    path: pathlib.Path,
    params: Params,
    config: ModelConfig,
    hf_config: dict[str, Any],
    *,
    kind: Literal["generator", "discriminator"],
    adapters: Adapters | None = None,
    tokenizer_dir: pathlib.Path | None = None,
    generation_config: dict[str, Any] | None = None,
    model_card: str | None = None,
    pooling: Literal["last", "mean"] = "last",
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_bytes: float = 2e9,
) -> None:
    """Writes a language model as a causal language model, or a scalar head as a token classifier with one label.

    The directory is complete or absent at any time: it is written beside `path` and renamed. Host memory holds the
    tensors of one file at a time. All processes of a run call this, and process 0 writes.

    Args:
      path: the directory, which may hold an earlier export.
      params: tree of parameters, as arrays on any devices or as `LazyParam`s.
      config: the model's architecture.
      hf_config: the config.json that the model came from.
      kind: the network that is written. A discriminator may be either.
      adapters: the trained adapters that `params` has merged; written to `adapter/` too, for PEFT.
      tokenizer_dir: directory whose files (tokenizer and chat template) are copied.
      generation_config: contents of generation_config.json, written for a language model only.
      model_card: contents of README.md.
      pooling: how a scalar head's values become a score (`hf_files.pooling_of`).
      dtype: dtype of the weights in the files.
      max_shard_bytes: largest size of a file of weights; only a single larger tensor exceeds it.

    Raises:
      UserError: `path` exists and is not an export, or cannot be written.
    """
    path = pathlib.Path(path).absolute()
    scalar = "score" in params
    if scalar and kind == "generator":
        raise ValueError(f"these are not the parameters of a {kind}")
    writes = processes.is_first()
    staging = path.with_name(f".{path.name}.incomplete")
    with processes.together(), _as_user_error(path):
        if writes:
            _refuse_to_replace(path)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            if tokenizer_dir is not None:
                shutil.copytree(tokenizer_dir, staging, dirs_exist_ok=True)
            _write_json(staging / "config.json", _hf_config(config, hf_config, scalar, pooling, dtype))
            _write_json(staging / MARK, {"kind": kind, "version": __version__})
            if generation_config is not None and not scalar:
                _write_json(staging / "generation_config.json", generation_config)
            if model_card is not None:
                (staging / "README.md").write_text(model_card, encoding="utf-8")
    with processes.together(), _as_user_error(path):
        _write_weights(staging if writes else None, params, config, np.dtype(dtype), max_shard_bytes)
    with processes.together(), _as_user_error(path):  # apart, so that no process waits here after a failure above
        if adapters is not None:
            write_peft(staging / "adapter" if writes else None, adapters, config, scalar=scalar)
        if writes:
            _replace(staging, path)


@contextlib.contextmanager
def _as_user_error(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: the export cannot be written ({error}); choose another place") from error


def _hf_config(config: ModelConfig, source: dict[str, Any], scalar: bool, pooling: str, dtype: str) -> dict[str, Any]:
    """The config.json of an export: the source's, with the fields that an export changes."""
    out = {name: value for name, value in source.items() if name not in (*_CLASSIFIER_FIELDS, "auto_map")}
    out |= {"model_type": config.family.model_type, "tie_word_embeddings": config.tie_embeddings, "dtype": dtype}
    if "torch_dtype" in out:  # the name before transformers 5, for older readers
        out["torch_dtype"] = dtype
    if not scalar:
        return out | {"architectures": [config.family.name + CAUSAL_LM]}
    named = {} if pooling == "last" else {POOLING: pooling}
    return (
        out
        | named
        | {
            "architectures": [config.family.name + TOKEN_CLASSIFICATION],
            "num_labels": 1,
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            "classifier_dropout": 0.0,
        }
    )


def _write_weights(
    directory: pathlib.Path | None, params: Params, config: ModelConfig, dtype: np.dtype, max_shard_bytes: float
) -> None:
    """Writes the files of weights, and an index if there are several.

    All processes of a run call this; those that do not write pass None for the directory.
    """
    leaves, names = named_leaves(params), tensors_of(config)
    # The parameters that lie in each tensor, in their order in it.
    held: dict[str, list[str]] = {}
    for path in leaves:
        held.setdefault(names[path].name, []).append(path)
    for paths in held.values():
        paths.sort(key=lambda path: names[path].start)
    # Which tensors go into which file.
    shards: list[list[tuple[str, list[str], int | None]]] = [[]]  # per file: (tensor, parameters, layer)
    sizes = [0]
    for name, paths in held.items():
        layers = leaves[paths[0]].shape[0] if is_stacked(paths[0]) else None
        size = sum(leaves[path].size for path in paths) * dtype.itemsize // (layers or 1)
        for layer in [None] if layers is None else range(layers):
            if shards[-1] and sizes[-1] + size > max_shard_bytes:
                shards.append([])
                sizes.append(0)
            shards[-1].append((name.format(layer), paths, layer))
            sizes[-1] += size
    # File by file. A process that fails goes on taking part, since the others need it, and raises at the end.
    weight_map, failure = {}, None
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, paths, layer in shard:
            parts = []
            for path in paths:
                try:
                    value = fetch(leaves[path], layer, dtype, wanted=directory is not None)
                except (UserError, OSError, safetensors.SafetensorError) as error:  # the base's file cannot be read
                    directory, failure = None, error
                if directory is not None:
                    parts.append(names[path].write(value))
            if directory is not None:
                tensors[name] = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
                weight_map[name] = file
        if directory is not None:
            try:
                safetensors.numpy.save_file(tensors, directory / file, metadata={"format": "pt"})
            except (OSError, safetensors.SafetensorError) as error:
                directory, failure = None, error
    if failure is not None:
        raise failure
    if directory is not None and len(shards) > 1:
        _write_json(directory / INDEX_FILE, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})


def _refuse_to_replace(path: pathlib.Path) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MARK).exists():
        raise UserError(f"{path}: exists and is not an export of gadjax; choose another directory, or remove it")


def _replace(staging: pathlib.Path, path: pathlib.Path) -> None:
    """Puts a complete directory in another's place. Between the two renames there is none."""
    for entry in [*staging.rglob("*"), staging]:
        if entry.is_file():  # safetensors lets nobody but the owner read its files, whatever the umask
            shutil.copymode(staging / MARK, entry)
        _sync(entry)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(staging, path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
    """Flushes a file or directory to disk, so that no rename survives a power cut without its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
