"""Where the models of an evaluation come from: NAME=SOURCE pairs and what a source stands for."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any

from gadjax.errors import UserError
from gadjax.evaluation.results import TEACHER, BestOf
from gadjax.files import expand

REFERENCE = "reference"
CHECKPOINT, EXPORT, API = "checkpoint", "export", "api"
BEST_STEP = "best"
_API_PREFIX = "api:"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_OPTION = re.compile(r"\+(?=(?:best_of|discriminator|temperature)=)")
_TEMPERATURE = 0.8  # of the draws of a best of several, unless the source says otherwise


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
      name: the model's name in the evaluation.
      given: the source as the user wrote it.
      kind: `CHECKPOINT` of a run, `EXPORT` (any Hugging Face directory or hub id) or `API`.
      where: the workdir, the directory or hub id, or the API's name of the model.
      step: of the checkpoint; None for the last one, `BEST_STEP` for the best by `config.checkpoint.best`.
      best_of: how answers are chosen among several draws; None for a model that gives one.
    """

    name: str
    given: str
    kind: str
    where: str
    step: Any = None
    best_of: BestOf | None = None

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

    All but the last may be followed by +best_of=N+discriminator=DIR, and +temperature=T.

    Raises:
      UserError: the name cannot be used, @STEP follows no workdir, the API's model has no name, or options of the best
        of several are missing or wrong.
    """
    check_name(name, flag)
    shown = f"{flag}={name}={given}" if flag == "--models" else f"{flag}={given}"
    place, *options = [given] if expand(given).exists() else _OPTION.split(given)
    source = _parse_place(name, place, shown)
    return dataclasses.replace(source, given=given, best_of=_parse_best_of(options, source.kind, shown))


def _parse_place(name: str, given: str, shown: str) -> ModelSource:
    """The source without options."""
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


def _parse_best_of(options: list[str], kind: str, shown: str) -> BestOf | None:
    """The options KEY=VALUE of a best of several; None if there are none."""
    if not options:
        return None
    if kind == API:
        raise UserError(f"{shown}: best_of is for models on this machine; a discriminator reads token ids")
    found: dict[str, str] = {}
    for name, _, value in (option.partition("=") for option in options):
        if name in found:
            raise UserError(f"{shown}: {name} is there twice")
        found[name] = value
    for name in ("best_of", "discriminator"):
        if not found.get(name):
            raise UserError(f"{shown}: {name} is missing; write SOURCE+best_of=8+discriminator=DIR")
    samples, temperature = found["best_of"], found.get("temperature", str(_TEMPERATURE))
    if not (samples.isascii() and samples.isdigit() and int(samples) >= 2):
        raise UserError(f"{shown}: best_of={samples}: a number of at least 2")
    try:
        at = float(temperature)
    except ValueError:
        at = math.nan
    if not 0 < at < math.inf:
        raise UserError(f"{shown}: temperature={temperature}: a number above 0, or all draws would be the same")
    return BestOf(int(samples), at, found["discriminator"])


def _is_workdir(path: pathlib.Path) -> bool:
    return (path / "run.json").is_file()
