"""Opening Parquet files, with the errors that a user can mend."""

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
    """The file, to be read inside the block; `options` are `pyarrow.parquet.ParquetFile`'s.

    Raises:
      UserError: naming the file, for whatever Arrow cannot open or read.
    """
    try:
        with pq.ParquetFile(file, **options) as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{file}: not a Parquet file that can be read ({first_line(error)})") from error


def check_columns(file: str | os.PathLike[str], names: Sequence[str], required: Sequence[str]) -> None:
    """Refuses a file whose columns, `names`, lack one that is required.

    Raises:
      UserError: naming the file, the column, and those that it has.
    """
    for name in required:
        if name not in names:
            raise UserError(f"{file}: column `{name}` is missing; the file has {', '.join(names) or 'no columns'}")
