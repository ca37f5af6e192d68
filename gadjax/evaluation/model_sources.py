"""Where the models of an evaluation come from: NAME=SOURCE pairs and what a source stands for."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

from gadjax.errors import UserError
from gadjax.evaluation.results import TEACHER
from gadjax.files import expand

REFERENCE = "reference"
CHECKPOINT, EXPORT, API = "checkpoint", "export", "api"
BEST_STEP = "best"
_API_PREFIX = "api:"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
      name: the model's name in the evaluation.
      given: the source as the user wrote it.
      kind: `CHECKPOINT` of a run, `EXPORT` (any Hugging Face directory or hub id) or `API`.
      where: the workdir, the directory or hub id, or the API's name of the model.
      step: of the checkpoint; None for the last one, `BEST_STEP` for the best by `config.checkpoint.best`.
    """

    name: str
    given: str
    kind: str
    where: str
    step: Any = None

    @property
    def workdir(self) -> pathlib.Path | None:
        """The workdir of the run that the model is a checkpoint or an export of, or None."""
        if self.kind == CHECKPOINT:
            return pathlib.Path(self.where)
        folder = expand(self.where).absolute().parent
        if self.kind == EXPORT and folder.name == "export" and _is_workdir(folder.parent):
            return folder.parent
        return None


def parse_pairs(pairs: list[str], flag: str) -> dict[str, str]:
    """The values of a flag's NAME=VALUE texts by name.

    Raises:
      UserError: a text has another form, or a name is there twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name.strip() and value.strip()):
            raise UserError(f"{flag}={pair}: expected NAME=VALUE; several are separated by commas")
        if name.strip() in found:
            raise UserError(f"{flag}: the name {name.strip()!r} is there twice; names must differ")
        found[name.strip()] = value.strip()
    return found


def check_name(name: str, flag: str) -> None:
    """Refuses a name that cannot be a file's, or that stands for the teacher's or the reference answers."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{flag}: the name {name!r} must begin with a letter or digit and hold only those and . _ + -")
    if name in (TEACHER, REFERENCE):
        raise UserError(f"{flag}: the name {name!r} stands for the {name}'s own answers; choose another one")


def parse_source(name: str, given: str, flag: str = "--models") -> ModelSource:
    """The source that a text describes: a directory or hub id, WORKDIR, WORKDIR@STEP, WORKDIR@best, or api:MODEL.

    Raises:
      UserError: the name cannot be used, @STEP follows no workdir, or the API's model has no name.
    """
    check_name(name, flag)
    shown = f"{flag}={name}={given}" if flag == "--models" else f"{flag}={given}"
    if given.startswith(_API_PREFIX):
        model = given.removeprefix(_API_PREFIX).strip()
        if not model:
            raise UserError(f"{shown}: the model's name is missing; write api:MODEL")
        return ModelSource(name, given, API, model)
    path, at, step = given.rpartition("@")
    numbered = step.isascii() and step.isdigit()
    if at and (numbered or step == BEST_STEP) and not expand(given).exists():
        if not _is_workdir(expand(path)):
            raise UserError(f"{shown}: {path} is not the workdir of a run; @STEP or @best names a checkpoint of one")
        return ModelSource(name, given, CHECKPOINT, str(expand(path).absolute()), int(step) if numbered else step)
    if _is_workdir(expand(given)):
        return ModelSource(name, given, CHECKPOINT, str(expand(given).absolute()))
    return ModelSource(name, given, EXPORT, given)


def _is_workdir(path: pathlib.Path) -> bool:
    return (path / "run.json").is_file()
