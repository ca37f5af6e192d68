"""Datasets of the Hugging Face hub, from their Parquet files alone.

`hf:OWNER/NAME/SPLIT:FIELD` names one, or `hf:OWNER/NAME/CONFIG/SPLIT:FIELD` where it has several configs. The hub keeps
every public dataset as Parquet on a branch of its own, CONFIG/SPLIT/0000.parquet and on; where there is none, the
dataset's own Parquet files are looked through. NAME may be a folder on this machine with such files.
"""

from __future__ import annotations

import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from gadjax.data.dataset_name import parse
from gadjax.errors import UserError, first_line
from gadjax.files import expand

_CONVERTED = "refs/convert/parquet"
_FILE = re.compile(r"(?P<split>[\w.-]+?)(-\d+-of-\d+(-\w+)?)?\.parquet")
_DEFAULT = "default"  # the config's name where a dataset does not name any


def files(text: str) -> list[pathlib.Path]:
    """The Parquet files of a split, in order; fetched from the hub, or in its cache.

    Raises:
      UserError: no such dataset, config or split, or the hub does not give it.
    """
    source = parse(text)
    folder = expand(source.path)
    if folder.is_dir():
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
        return [folder / name for name in _choose(text, names, None, source.split)]
    parts = source.path.split("/")
    if len(parts) > 3 or not all(re.fullmatch(r"[\w.-]+", part) for part in parts):
        raise UserError(f"{text}: no such folder, and no id of the hub's datasets such as OWNER/NAME")
    name, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    revision, names = _listed(text, name)
    from huggingface_hub import hf_hub_download

    return [
        pathlib.Path(
            _asked(text, lambda file=file: hf_hub_download(name, file, repo_type="dataset", revision=revision))
        )
        for file in _choose(text, names, config, source.split)
    ]


def _listed(text: str, name: str) -> tuple[str | None, list[str]]:
    """Revision and names of a dataset's Parquet files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    revision: str | None = _CONVERTED

    def listed() -> list[str]:
        nonlocal revision
        try:
            return HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        except RevisionNotFoundError:  # a private dataset, or a hub of one's own
            revision = None
            return HfApi().list_repo_files(name, repo_type="dataset")

    names = _asked(text, listed)
    return revision, sorted(file for file in names if file.endswith(".parquet"))


def _asked(text: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # the hub's own, and whatever its HTTP client raises: time-outs, proxies, TLS
        raise UserError(f"{text}: the hub does not give it ({first_line(error)})") from None


def _choose(text: str, names: Sequence[str], config: str | None, split: str) -> list[str]:
    """The files of one config's split."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        *folders, file = name.split("/")
        match = _FILE.fullmatch(file)
        own = match["split"] if match else ""
        if re.fullmatch(r"\d+", own) and folders:  # CONFIG/SPLIT/0000.parquet
            own = folders.pop()
        folders = [folder for folder in folders if folder != "data"]
        found["/".join(folders) or _DEFAULT][own].append(name)
    if not found:
        raise UserError(f"{text}: the dataset has no Parquet files")
    if config is None:
        config = next(iter(found)) if len(found) == 1 else _DEFAULT
    if config not in found:
        raise UserError(f"{text}: name one of its configs, {', '.join(found)}: hf:OWNER/NAME/CONFIG/SPLIT")
    if split not in found[config]:
        raise UserError(f"{text}: no split {split!r}; there is {', '.join(found[config])}")
    return found[config][split]
