"""Finds the files that a user names by a file, a folder, a glob or a dataset (`hf:`, `tfds:`)."""

from __future__ import annotations

import glob
import os
import pathlib
import re
from collections.abc import Sequence

from gadjax.data import hub_dataset
from gadjax.data.dataset_name import HUB, TFDS
from gadjax.data.table_files import SUFFIXES, suffix_of
from gadjax.errors import UserError
from gadjax.files import expand

LEDGER = ".ledger.jsonl"  # the end of the name of gadjax.collect's ledger

_PARTITION = re.compile(r"[^=]+=.*")
# Files that stand beside data and hold none: of gadjax.collect, of `datasets`, of TFDS.
_NO_DATA = re.compile(
    r"[._].*|.*\.partial|.*\.ledger\.jsonl|.*\.batches\.json|dataset_infos?\.json|dataset_dict\.json|state\.json|"
    r"features\.json"
)
_KINDS = ", ".join(suffix for suffix in SUFFIXES if suffix != ".txt")


def find(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], flag: str = "") -> list[str]:
    """The files and TFDS datasets that the paths name, in order; those of a folder or a glob in the order of names.

    A folder's files of rows are those directly inside, and those in its folders `key=value`, as deep as these go. Files
    that hold no rows (a ledger, a README) are left out of folders and globs.

    Args:
      paths: a file, folder, glob or dataset, or a sequence of these.
      flag: names the path in messages, if it is from a command's flag.

    Raises:
      UserError: there is no such file, or it is of no kind that can be read.
    """
    entries = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not entries:
        raise UserError("no file was named; give a file, a glob or a directory")
    files: list[str] = []
    for entry in (os.fspath(expand(path)) for path in entries):
        if entry.startswith(HUB):
            files += [os.fspath(path) for path in hub_dataset.files(entry)]
        elif entry.startswith(TFDS):
            files.append(entry)
        else:
            files += _on_disk(entry, f"{flag}={entry}" if flag else entry)
    return files


def _on_disk(entry: str, shown: str) -> list[str]:
    if os.path.isfile(entry):
        if not suffix_of(entry):
            raise UserError(
                f"{shown}: expected a file that ends in {', '.join(SUFFIXES)} (text also with .gz, .zst or .bz2), or a "
                "dataset as hf:OWNER/NAME/SPLIT or tfds:NAME/SPLIT"
            )
        return [entry]
    if os.path.isdir(entry):
        found = _in_folder(pathlib.Path(entry))
        if not found:
            raise UserError(f"{shown}: the directory holds no file of rows ({_KINDS})")
        return found
    if os.path.exists(entry):  # reading a pipe would wait, and could not be repeated
        raise UserError(f"{shown}: not a regular file; write the data to one")
    if not glob.has_magic(entry):
        raise UserError(f"{shown}: no such file")
    matches = sorted(path for path in glob.glob(entry, recursive=True) if os.path.isfile(path))
    kinds = {path: suffix_of(path) for path in matches if not _NO_DATA.fullmatch(os.path.basename(path))}
    found = [path for path, kind in kinds.items() if kind not in ("", ".txt")]
    found = found or [path for path, kind in kinds.items() if kind]  # text beside data may be a licence
    if not found:
        raise UserError(f"{shown}: no file {'of rows ' if matches else ''}matches this pattern")
    return found


def _in_folder(folder: pathlib.Path) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += _in_folder(path) if _PARTITION.fullmatch(path.name) else []
        elif path.is_file() and not _NO_DATA.fullmatch(path.name) and _is_data(path):
            found.append(os.fspath(path))
    return found


def _is_data(path: pathlib.Path) -> bool:
    """Whether a file of a folder holds rows by its name; text may be a README, or a licence."""
    return any(suffix.lower() in SUFFIXES for suffix in path.suffixes[-2:]) and suffix_of(path) not in ("", ".txt")
