"""Reads and writes TensorFlow Datasets in array_record files, without TensorFlow.

`tfds:NAME/SPLIT:FIELD` names one. NAME is a dataset of the data directory (`TFDS_DATA_DIR`, or ~/tensorflow_datasets),
with config and version if it has them, or the folder of one version. SPLIT may be a slice such as `train[:10%]`.
Nothing is downloaded or prepared, because most builders need TensorFlow for that
(https://www.tensorflow.org/datasets/tfless_tfds).
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gadjax.data.dataset_name import parse
from gadjax.data.parquet import check_columns, open_parquet
from gadjax.errors import UserError, first_line
from gadjax.files import expand, writing

_DATASET = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_ROWS_A_SHARD = 50_000
_ROWS_A_BATCH = 1024
# Number features of a published dataset: type, and the value that stands for a missing one. Missing text is "".
_NUMBERS = {
    "created": (np.int64, 0),
    "prompt_tokens": (np.int64, -1),
    "completion_tokens": (np.int64, -1),
    "temperature": (np.float32, -1.0),
    "top_p": (np.float32, -1.0),
    "max_tokens": (np.int64, -1),
    "seed": (np.int64, -1),
    "sample": (np.int64, 0),
}
_TEXTS = ("teacher_response", "category", "id", "model", "finish_reason", "system", "request_fields")
_SPLIT = "train"


def open_source(text: str) -> Sequence[dict[str, Any]]:
    """The examples of the split `tfds:NAME/SPLIT`, by random access: NumPy values, text as bytes.

    Raises:
      UserError: there is no such dataset or split, or not in array_record files.
    """
    source = parse(text)
    import tensorflow_datasets as tfds

    folder = expand(source.path)
    try:
        builder = tfds.builder_from_directory(folder) if folder.is_dir() else tfds.builder(source.path)
        if source.split.partition("[")[0] not in builder.info.splits:
            raise UserError(
                f"{text}: no split {source.split!r}; the dataset has {', '.join(builder.info.splits) or 'none here'}"
            )
        return builder.as_data_source(split=source.split)
    except UserError:
        raise
    except Exception as error:  # TFDS raises many kinds, also for what a user has mistyped
        raise UserError(
            f"{text}: cannot be read as a TFDS dataset in array_record files ({first_line(error)}); it must be there "
            "already, in TFDS_DATA_DIR or in the folder given as NAME"
        ) from None


def examples(text: str, wanted: Sequence[str], one_of: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a split as Python values, each with its place for messages.

    A sequence of features, which TFDS returns as one sequence for each feature, becomes a list of dictionaries.

    Args:
      text: `tfds:NAME/SPLIT`; a field is ignored.
      wanted: features to take, as far as the dataset has them.
      one_of: features of which the dataset must have one.

    Raises:
      UserError: as by `open_source`; or none of `one_of` is there, or an example (from 0) has text that is not UTF-8.
    """
    source = open_source(text)
    for number in range(len(source)):
        place = f"{text}: example {number}"
        example = source[number]
        if one_of and not set(one_of) & set(example):
            raise UserError(f"{text}: no feature {' or '.join(one_of)}; the dataset has {', '.join(example)}")
        try:
            yield place, {name: _plain(example[name]) for name in wanted if name in example}
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: text that is not valid UTF-8 ({error.reason})") from None


def read_table(text: str, columns: Sequence[str]) -> pa.Table:
    """The columns that a dataset has, with null for empty text, which stands for none; errors as by `examples`."""
    rows = (example for _, example in examples(text, columns))
    return pa.Table.from_pylist([{name: value if value != "" else None for name, value in row.items()} for row in rows])


def publish(file: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes a teacher's Parquet as a TFDS dataset and returns its version's folder.

    The dataset has one split, `train`, in the order of the rows. Floats become float32, the only kind that TFDS keeps.
    The folder appears whole or not at all.

    Args:
      file: Parquet with the teacher's schema; other columns are left out.
      folder: DATA_DIR/NAME/VERSION, or DATA_DIR/NAME for version 1.0.0.

    Raises:
      UserError: the file cannot be read, or the folder has another form or exists already.
    """
    version = folder.name if _VERSION.fullmatch(folder.name) else "1.0.0"
    if version != folder.name or folder.parent.name == "":
        folder = folder / version
    name = folder.parent.name
    if not _DATASET.fullmatch(name):
        raise UserError(
            f"--out={folder}: {name!r} is no name of a dataset; expected DATA_DIR/NAME/VERSION with a NAME of small "
            "letters, digits and _"
        )
    if folder.exists():
        raise UserError(f"--out={folder}: the dataset is there already; give another version")
    with open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        check_columns(file, names, ("content", "teacher_response"))
        kept = [column for column in ("content", *_TEXTS, *_NUMBERS) if column in names]
        partial = folder.with_name(f"{version}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with writing(folder):
            partial.mkdir(parents=True)
            try:
                _write(parquet, kept, name, version, partial)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(parquet: pq.ParquetFile, kept: list[str], name: str, version: str, folder: pathlib.Path) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.sequential_writer import SequentialWriter

    text = tfds.features.Text
    features: dict[str, Any] = {column: text() for column in _TEXTS if column in kept}
    features |= {column: tfds.features.Scalar(dtype=kind) for column, (kind, _) in _NUMBERS.items() if column in kept}
    features["content"] = tfds.features.Sequence({"role": text(), "content": text()})
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name="gadjax"
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        description="A teacher's answers to prompts, collected with gadjax.",
    )
    writer = SequentialWriter(info, max_examples_per_shard=_ROWS_A_SHARD, file_format="array_record")
    writer.initialize_splits([_SPLIT])
    for batch in parquet.iter_batches(_ROWS_A_BATCH, columns=kept):
        rows = [{column: _feature(column, value) for column, value in row.items()} for row in batch.to_pylist()]
        writer.add_examples({_SPLIT: rows})
    writer.close_all()


def _feature(column: str, value: Any) -> Any:
    if value is not None:
        return value
    return _NUMBERS[column][1] if column in _NUMBERS else [] if column == "content" else ""


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        fields = {name: _plain(field) for name, field in value.items()}
        lengths = {len(field) if isinstance(field, list) else -1 for field in fields.values()}
        if len(lengths) == 1 and -1 not in lengths:
            return [dict(zip(fields, entries, strict=True)) for entries in zip(*fields.values(), strict=True)]
        return fields
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value] if value.ndim else _plain(value.item())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
