"""What is evaluated: models by name, and named sets of prompts, perhaps with the teacher's answers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any

from gadjax.data.prompts import Prompt, read_columns, read_jsonl, read_prompts, text_of
from gadjax.data.schema import CUT_REASONS, MARKED_REASONS
from gadjax.errors import UserError
from gadjax.evaluation.results import TEACHER
from gadjax.files import expand

DISPLAY_NAMES = {"lmsys": "LMSYS", "dolly": "Dolly", "self_instruct": "SelfInst", "vicuna": "Vicuna"}
REFERENCE = "reference"
CHECKPOINT, EXPORT, API = "checkpoint", "export", "api"
BEST_STEP = "best"
_API_PREFIX = "api:"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_SAMPLING = ("temperature", "top_p")
_ANSWER_COLUMNS = ("teacher_response", "finish_reason", *_SAMPLING)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
      name: its own among the models compared.
      given: as the user wrote it.
      kind: `CHECKPOINT` of a run, `EXPORT` (any Hugging Face directory or hub id) or `API`.
      where: the workdir, the directory or hub id, or the API's name of the model.
      step: of the checkpoint; None for the last one, `BEST_STEP` for the best by `config.checkpoint.best`.
    """

    name: str
    given: str
    kind: str
    where: str
    step: int | str | None = None

    @property
    def workdir(self) -> pathlib.Path | None:
        """The run that it is a checkpoint or an export of."""
        if self.kind == CHECKPOINT:
            return pathlib.Path(self.where)
        folder = expand(self.where).absolute().parent
        if self.kind == EXPORT and folder.name == "export" and _is_workdir(folder.parent):
            return folder.parent
        return None


@dataclasses.dataclass(frozen=True)
class TeacherAnswer:
    """The teacher's answer to a prompt; `ended` is False where its API cut it."""

    text: str
    ended: bool


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A named set of prompts.

    Attributes:
      sha256: of the file, or of the prompts where they are from elsewhere.
      teacher: an answer to each, None where there is none to compare with; None for a set without answers.
      sampling: temperatures and values of top_p that the answers were collected with, as far as the file says.
    """

    name: str
    path: str
    sha256: str
    prompts: list[Prompt]
    teacher: list[TeacherAnswer | None] | None
    sampling: dict[str, set[float]] = dataclasses.field(default_factory=dict)

    @property
    def answered(self) -> list[int]:
        """Places of the prompts that the teacher has answered."""
        return [i for i, answer in enumerate(self.teacher or ()) if answer is not None]

    def check_sampling(self, temperature: float) -> None:
        """Refuses answers that a teacher at this temperature, untruncated, would not have given.

        Raises:
          UserError: there are no answers, or they were collected in another way.
        """
        flag = f"--kl_forward=given: the set {self.name}"
        if self.teacher is None:
            raise UserError(f"{flag} has no teacher's answers; use drawn, or leave the set out")
        if any(value < 1 for value in self.sampling.get("top_p", ())):
            raise UserError(f"{flag} was collected with top_p < 1, whose KL is infinite; use drawn")
        if others := self.sampling.get("temperature", set()) - {temperature}:
            raise UserError(f"{flag} was collected at temperature {min(others)}; give it as --teacher_temperature")


def parse_pairs(pairs: list[str], flag: str) -> dict[str, str]:
    """NAME=VALUE texts of a flag, in their order.

    Raises:
      UserError: one is not of this form, or a name comes twice.
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
    """Refuses what cannot be the name of a file, or is the name of another one."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{flag}: the name {name!r} must begin with a letter or digit and hold only those and . _ + -")
    if name in (TEACHER, REFERENCE):
        raise UserError(f"{flag}: the name {name!r} stands for the {name}'s own answers; choose another one")


def parse_source(name: str, given: str, flag: str = "--models") -> Source:
    """A model from its description: a directory or hub id, WORKDIR, WORKDIR@STEP, WORKDIR@best, or api:MODEL.

    Raises:
      UserError: the name cannot be used, or the API's model has no name.
    """
    check_name(name, flag)
    shown = f"{flag}={name}={given}" if flag == "--models" else f"{flag}={given}"
    if given.startswith(_API_PREFIX):
        model = given.removeprefix(_API_PREFIX).strip()
        if not model:
            raise UserError(f"{shown}: the model's name is missing; write api:MODEL")
        return Source(name, given, API, model)
    path, at, step = given.rpartition("@")
    numbered = step.isascii() and step.isdigit()
    if at and (numbered or step == BEST_STEP) and not expand(given).exists():
        if not _is_workdir(expand(path)):
            raise UserError(f"{shown}: {path} is not the workdir of a run; @STEP or @best names a checkpoint of one")
        return Source(name, given, CHECKPOINT, str(expand(path).absolute()), int(step) if numbered else step)
    if _is_workdir(expand(given)):
        return Source(name, given, CHECKPOINT, str(expand(given).absolute()))
    return Source(name, given, EXPORT, given)


def read_set(name: str, path: str | os.PathLike[str], *, max_prompts: int = 0) -> Prompts:
    """Reads a set of prompts, with the teacher's answers where the file has `teacher_response`.

    An answer that the teacher's API marked as none (a refusal, a filter), or cut before it began, is left out: its
    prompt stays.

    Args:
      name: of the set.
      path: anything that `read_prompts` reads.
      max_prompts: only the first so many; 0 for all.

    Raises:
      UserError: naming the set's flag, or the file and its row.
    """
    check_name(name, "--sets")
    prompts = read_prompts(path)
    file = expand(path)
    rows = _teacher_rows(file)
    teacher = None if rows is None else [_teacher_answer(row, place) for place, row in rows]
    if max_prompts:
        prompts, teacher = prompts[:max_prompts], teacher and teacher[:max_prompts]
    if teacher is not None and not any(teacher):
        raise UserError(f"--sets={name}={path}: all of the teacher's answers are marked as no answer (`finish_reason`)")
    if file.is_file():
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    else:
        sha256 = hashlib.sha256(json.dumps([dataclasses.asdict(prompt) for prompt in prompts]).encode()).hexdigest()
    drawn = {
        field: {float(row[field]) for _, row in rows or () if isinstance(row.get(field), int | float)}
        for field in _SAMPLING
    }
    return Prompts(name, os.fspath(path), sha256, prompts, teacher, drawn)


def read_references(path: str | os.PathLike[str], prompts: Prompts) -> list[str]:
    """Answers to a set's prompts from a file with `response` or `teacher_response`, found by id, else by chat.

    Raises:
      UserError: naming the file, and the row or the prompt that has no answer there.
    """
    file = expand(path)
    flag = f"--references={prompts.name}={path}"
    answers: dict[str, str] = {}
    given = read_prompts(file)
    rows = _rows(file, ("response", "teacher_response"))
    if rows is None:
        raise UserError(f"{flag}: expected a .jsonl or .parquet file with `response`")
    for prompt, (place, row) in zip(given, rows, strict=True):
        text = text_of(row, "response", place) or text_of(row, "teacher_response", place)
        if not text or not text.strip():
            raise UserError(f"{place}: `response` is missing or empty; a reference has text")
        answers[prompt.id] = answers[_chat_name(prompt)] = text
    found = [answers.get(prompt.id) or answers.get(_chat_name(prompt)) for prompt in prompts.prompts]
    for prompt, text in zip(prompts.prompts, found, strict=True):
        if text is None:
            raise UserError(f"{flag}: the file has no answer to prompt {prompt.id!r} of the set")
    return found


def _chat_name(prompt: Prompt) -> str:
    return json.dumps(prompt.content)


def _teacher_rows(file: pathlib.Path) -> list[tuple[str, dict[str, Any]]] | None:
    """The rows of a file that has teacher's answers, each with its place; None where it has none."""
    rows = _rows(file, _ANSWER_COLUMNS)
    return rows if rows and any("teacher_response" in row for _, row in rows) else None


def _rows(file: pathlib.Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]] | None:
    if not file.is_file() or file.suffix not in (".jsonl", ".parquet"):
        return None
    return list(read_jsonl(file) if file.suffix == ".jsonl" else read_columns(file, columns))


def _teacher_answer(row: dict[str, Any], place: str) -> TeacherAnswer | None:
    text, reason = text_of(row, "teacher_response", place), row.get("finish_reason")
    cut = reason in CUT_REASONS
    blank = not (text or "").strip()
    if reason in MARKED_REASONS or (cut and blank):
        return None
    if blank:
        raise UserError(f"{place}: `teacher_response` is missing or empty; give every row of the file one, or none")
    return TeacherAnswer(text, not cut)


def _is_workdir(path: pathlib.Path) -> bool:
    return (path / "run.json").is_file()
