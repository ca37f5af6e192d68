"""Opens Parquet files; errors tell a user which file to mend."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gadjax.errors import UserError, first_line


@contextlib.contextmanager
def open_parquet(file: str | os.PathLike[str], **options: Any) -> Iterator[pq.ParquetFile]:
    """The open file, to read inside the block; `options` are those of `pyarrow.parquet.ParquetFile`.

    Raises:
      UserError: Arrow cannot open or read the file.
    """
    try:
        try:
            opened = pq.ParquetFile(file, **options)
        except UnicodeDecodeError as error:  # a damaged name of a column
            raise pa.ArrowInvalid(str(error)) from error
        with opened as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{file}: not a Parquet file that can be read ({first_line(error)})") from error


def check_columns(file: str | os.PathLike[str], names: Sequence[str], required: Sequence[str]) -> None:
    """Raises a `UserError` if the file's columns, `names`, lack one of `required`."""
    for name in required:
        if name not in names:
            raise UserError(f"{file}: column `{name}` is missing; the file has {', '.join(names) or 'no columns'}")
