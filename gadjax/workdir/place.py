"""Where a run's checkpoints lie: that they are there, that newer ones lie nowhere else, and that they are its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Sequence

from etils import epath

from gadjax.config.check import field_value
from gadjax.errors import UserError
from gadjax.files import is_url, replace
from gadjax.workdir.checkpoints import Checkpoints, checkpoint_directory, using

OWNER = "workdir.txt"  # in a folder that is not in the workdir: the workdir whose checkpoints it holds


def check_place(workdir: pathlib.Path, directory: str, saved: Sequence[int]) -> None:
    """Refuses to begin anew, or from an earlier step, because the checkpoints of a workdir's run lie elsewhere.

    Args:
      directory: as `config.checkpoint.directory` has it.
      saved: steps of the checkpoints there, ascending.

    Raises:
      UserError: the directory is another workdir's; or the one that the workdir's config.json names is gone, or has a
        newer checkpoint.
    """
    where = checkpoint_directory(workdir, directory)
    _check_owner(workdir, where)
    if (named := _named_before(workdir)) is None:
        return
    before = checkpoint_directory(workdir, named)
    steps = saved
    if before != where:
        with contextlib.closing(Checkpoints(workdir, directory=named)) as checkpoints:
            steps = checkpoints.steps()
    if not saved and not steps and is_outside(workdir, before) and not _owner(before):
        raise UserError(
            f"config.checkpoint.directory: the run of --workdir {workdir} keeps its checkpoints in {before}, which is "
            "gone: mount its disk, or restore the folder; for a new run use another --workdir"
        )
    if steps and steps[-1] > (saved[-1] if saved else 0):
        newest = f"the newest checkpoint in {where} is of step {saved[-1]}" if saved else f"{where} has no checkpoint"
        raise UserError(
            f"config.checkpoint.directory: {newest}, but the run of --workdir {workdir} has one of step {steps[-1]} in "
            f"{before}: move them, or leave the field as it was"
        )


def take_place(workdir: pathlib.Path, directory: str) -> None:
    """Makes the directory, and writes down whose it is; of one process.

    Raises:
      UserError: it cannot be written, or another workdir has taken it meanwhile.
    """
    where = checkpoint_directory(workdir, directory)
    with using(where, "written to"):
        where.mkdir(parents=True, exist_ok=True)
        if is_outside(workdir, where):
            _check_owner(workdir, where)
            if not _owner(where):
                owner = f"{workdir.resolve()}\n"
                # Whole or absent: config.json, written later, says that it is there. A store's files always are.
                if is_url(where):
                    (where / OWNER).write_text(owner)
                else:
                    replace(pathlib.Path(where / OWNER), owner.encode())


def sign_of(workdir: pathlib.Path, directory: str) -> epath.Path:
    """A file or folder that is there once `take_place` is done."""
    where = checkpoint_directory(workdir, directory)
    return where / OWNER if is_outside(workdir, where) else where


def is_outside(workdir: pathlib.Path, where: epath.Path) -> bool:
    """Whether checkpoints lie in another place than the workdir, which is not moved or copied with it."""
    return is_url(where) or not pathlib.Path(where).resolve().is_relative_to(workdir.resolve())


def _check_owner(workdir: pathlib.Path, where: epath.Path) -> None:
    if is_outside(workdir, where) and (owner := _owner(where)) not in ("", str(workdir.resolve())):
        raise UserError(
            f"config.checkpoint.directory: {where} holds the checkpoints of --workdir {owner}, not of {workdir}: "
            f"choose another directory; or, if that workdir was moved, delete {where / OWNER}"
        )


def _owner(where: epath.Path) -> str:
    """ "" where nobody has taken the directory."""
    with using(where, "read"):
        try:
            return (where / OWNER).read_text().strip()
        except FileNotFoundError:
            return ""


def _named_before(workdir: pathlib.Path) -> str | None:
    """What config.json of the run in a workdir says of its checkpoints' directory; None where there is no run."""
    try:
        config = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):  # of no run yet; it is written anew
        return None
    return field_value(config, "checkpoint.directory") or ""
