"""Where a run's checkpoints are: that the folder exists, belongs to this run, and that no other has newer ones."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Sequence

from etils import epath

from gadjax.config.check import field_value
from gadjax.errors import UserError
from gadjax.files import is_url, replace
from gadjax.workdir.checkpoints import Checkpoints, checkpoint_directory
from gadjax.workdir.storage import using

OWNER = "workdir.txt"  # in a folder of checkpoints outside the workdir: the path of the workdir that they belong to


def check_place(workdir: pathlib.Path, directory: str, saved: Sequence[int]) -> None:
    """Refuses to start anew, or from an earlier step, because the run's checkpoints are somewhere else.

    Args:
      workdir: the run's folder.
      directory: the value of `config.checkpoint.directory`.
      saved: the steps of the checkpoints in that directory, ascending.

    Raises:
      UserError: the directory belongs to another workdir, or the directory that the workdir's config.json names is gone
        or has a newer checkpoint.
    """
    where = checkpoint_directory(workdir, directory)
    _check_owner(workdir, where)
    # Find where the run kept its checkpoints until now.
    try:
        config = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):  # there is no run yet: config.json is written anew
        return
    named = field_value(config, "checkpoint.directory") or ""
    before, steps = checkpoint_directory(workdir, named), saved
    if before != where:
        with contextlib.closing(Checkpoints(workdir, directory=named)) as checkpoints:
            steps = checkpoints.steps()
    # A folder outside the workdir that lacks the owner's file is a disk that is not mounted.
    if not saved and not steps and _is_outside(workdir, before) and not _owner(before):
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
    """Makes the folder of checkpoints and, if it is outside the workdir, writes down its owner; for one process.

    Raises:
      UserError: the folder cannot be written to, or another workdir has taken it meanwhile.
    """
    where = checkpoint_directory(workdir, directory)
    with using(where, "written to"):
        where.mkdir(parents=True, exist_ok=True)
        if _is_outside(workdir, where):
            _check_owner(workdir, where)
            if not _owner(where):
                owner = f"{workdir.resolve()}\n"
                # The file must be complete, as config.json, written later, says that it exists. A store's files are.
                if is_url(where):
                    (where / OWNER).write_text(owner)
                else:
                    replace(pathlib.Path(where / OWNER), owner.encode())


def sign_of(workdir: pathlib.Path, directory: str) -> epath.Path:
    """The file or folder whose existence shows that `take_place` is done."""
    where = checkpoint_directory(workdir, directory)
    return where / OWNER if _is_outside(workdir, where) else where


def _is_outside(workdir: pathlib.Path, where: epath.Path) -> bool:
    """Whether checkpoints are outside the workdir, so that they are not moved or copied with it."""
    return is_url(where) or not pathlib.Path(where).resolve().is_relative_to(workdir.resolve())


def _check_owner(workdir: pathlib.Path, where: epath.Path) -> None:
    if _is_outside(workdir, where) and (owner := _owner(where)) not in ("", str(workdir.resolve())):
        raise UserError(
            f"config.checkpoint.directory: {where} holds the checkpoints of --workdir {owner}, not of {workdir}: "
            f"choose another directory; or, if that workdir was moved, delete {where / OWNER}"
        )


def _owner(where: epath.Path) -> str:
    """The workdir that a folder of checkpoints belongs to, or "" if nobody has taken it."""
    with using(where, "read"):
        try:
            return (where / OWNER).read_text().strip()
        except FileNotFoundError:
            return ""
