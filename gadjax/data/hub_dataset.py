"""Finds the Parquet files of a dataset of the Hugging Face hub, `hf:OWNER/NAME/SPLIT` or `hf:OWNER/NAME/CONFIG/SPLIT`.

The hub keeps every public dataset as Parquet on a branch of its own, as CONFIG/SPLIT/0000.parquet and on. A dataset
without that branch is searched for Parquet files of its own. NAME may be a folder on this machine with such files.

Files come through the hub's download cache, so that a rerun works without a network; the hub's file system
(`HfFileSystem`) would read them over the network each time.
"""

from __future__ import annotations

import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence

from gadjax.data.dataset_name import parse
from gadjax.errors import UserError, first_line
from gadjax.files import expand
from gadjax.hub import quiet

_CONVERTED = "refs/convert/parquet"
_FILE = re.compile(r"(?P<split>[\w.-]+?)(-\d+-of-\d+(-\w+)?)?\.parquet")
_DEFAULT = "default"  # the name of a dataset's only config


def files(text: str) -> list[pathlib.Path]:
    """The Parquet files of a split, in order, from a folder, the hub's cache or the hub.

    Raises:
      UserError: there is no such dataset, config or split, or the hub does not give it.
    """
    source = parse(text)
    folder = expand(source.path)
    if folder.is_dir():
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
        return [folder / name for name in _choose(text, names, None, source.split)]
    parts = source.path.split("/")
    if len(parts) > 3 or not all(re.fullmatch(r"[\w.-]+", part) for part in parts):
        raise UserError(f"{text}: no such folder, and no id of the hub's datasets such as OWNER/NAME")
    try:
        with quiet():
            return _download(text, "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, source.split)
    except UserError:
        raise
    except Exception as error:  # the hub's own, and whatever its HTTP client raises: time-outs, proxies, TLS
        raise UserError(
            f"{text}: the hub does not give it ({first_line(error)}); without a network, give a folder"
        ) from None


def _download(text: str, name: str, config: str | None, split: str) -> list[pathlib.Path]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RevisionNotFoundError

    revision: str | None = _CONVERTED
    try:
        names = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
    except RevisionNotFoundError:  # a private dataset, or a hub of one's own
        revision = None
        names = HfApi().list_repo_files(name, repo_type="dataset")
    chosen = _choose(text, sorted(file for file in names if file.endswith(".parquet")), config, split)
    return [pathlib.Path(hf_hub_download(name, file, repo_type="dataset", revision=revision)) for file in chosen]


def _choose(text: str, names: Sequence[str], config: str | None, split: str) -> list[str]:
    """The files of one config's split; raises a `UserError` if there is no such config or split."""
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
