"""What is evaluated: models by name, and named sets of prompts, perhaps with the teacher's answers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re

from gadjax.data.prompts import Prompt, PromptRow, read_prompt_rows, text_of
from gadjax.data.schema import status_of
from gadjax.errors import UserError
from gadjax.evaluation import collected
from gadjax.evaluation.collected import Collected
from gadjax.evaluation.results import TEACHER
from gadjax.files import expand

DISPLAY_NAMES = {"lmsys": "LMSYS", "dolly": "Dolly", "self_instruct": "SelfInst", "vicuna": "Vicuna"}
REFERENCE = "reference"
CHECKPOINT, EXPORT, API = "checkpoint", "export", "api"
BEST_STEP = "best"
_API_PREFIX = "api:"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_ANSWER_COLUMNS = ("teacher_response", "finish_reason", *collected.COLUMNS)
_REFERENCE_COLUMNS = ("response", "teacher_response")


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
      sha256: of the file, or of prompts and answers where they are from elsewhere.
      teacher: an answer to each, None where there is none to compare with; None for a set without answers.
      collected: how the answers were collected, as far as the file says.
    """

    name: str
    path: str
    sha256: str
    prompts: list[Prompt]
    teacher: list[TeacherAnswer | None] | None
    collected: Collected = dataclasses.field(default_factory=Collected)

    @property
    def answered(self) -> list[int]:
        """Places of the prompts that the teacher has answered."""
        return [i for i, answer in enumerate(self.teacher or ()) if answer is not None]

    def check_sampling(self, temperature: float | None) -> None:
        """Refuses answers that a teacher at this temperature (None: at any one), untruncated, would not have given.

        Raises:
          UserError: there are no answers, or they were collected in another way.
        """
        flag = f"--kl_forward=given: the set {self.name}"
        if self.teacher is None:
            raise UserError(f"{flag} has no teacher's answers; use drawn, or leave the set out")
        self.collected.check(flag, temperature)


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
    """Reads a set of prompts, with the teacher's answers where its rows have `teacher_response`.

    An answer that the teacher's API marked as none (a refusal, a filter), or cut before it began, is left out: its
    prompt stays. Of several answers to a prompt (`sample`) the first is taken.

    Args:
      name: of the set.
      path: anything that `read_prompts` reads.
      max_prompts: only the first so many; 0 for all.

    Raises:
      UserError: naming the set's flag, or the file and its row.
    """
    check_name(name, "--sets")
    found = read_prompt_rows(path, _ANSWER_COLUMNS, flag=f"--sets={name}")
    answered = any("teacher_response" in one.row for one in found)
    teacher = [_teacher_answer(one) for one in found] if answered else None
    if max_prompts:
        found, teacher = found[:max_prompts], teacher and teacher[:max_prompts]
    if teacher is not None and not any(teacher):
        raise UserError(f"--sets={name}={path}: all of the teacher's answers are marked as no answer (`finish_reason`)")
    rows = [(one.place, one.row) for one, answer in zip(found, teacher or (), strict=False) if answer]
    prompts = [one.prompt for one in found]
    return Prompts(name, os.fspath(path), _sha256(path, prompts, teacher), prompts, teacher, collected.collected(rows))


def _sha256(path: str | os.PathLike[str], prompts: list[Prompt], teacher: list[TeacherAnswer | None] | None) -> str:
    file = expand(path)
    if file.is_file():
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    whole = [dataclasses.asdict(prompt) for prompt in prompts]
    whole += [answer and dataclasses.asdict(answer) for answer in teacher or ()]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def read_references(path: str | os.PathLike[str], prompts: Prompts) -> list[str]:
    """Answers to a set's prompts from a file with `response` or `teacher_response`, found by chat, else by id.

    An id says little where files are numbered on their own: it is asked only where the file has no chat of the set at
    all, whose prompts may stand there with another system turn. Of several rows with a prompt's chat, that with its id
    is taken.

    Raises:
      UserError: naming the file, and the row or the prompt that has no answer there.
    """
    flag = f"--references={prompts.name}"
    given = read_prompt_rows(path, _REFERENCE_COLUMNS, flag=flag)
    if not any(one.row.get(column) is not None for one in given for column in _REFERENCE_COLUMNS):
        raise UserError(f"{flag}={path}: expected a .jsonl or .parquet file, or a dataset, with `response`")
    by_both: dict[tuple[str, str], str] = {}
    by_chat: dict[str, str] = {}
    by_id: dict[str, str] = {}
    for prompt, place, row in given:
        text = next(filter(None, (text_of(row, column, place) for column in _REFERENCE_COLUMNS)), "")
        if not text.strip():
            raise UserError(f"{place}: `response` is missing or empty; a reference has text")
        chat = _chat_name(prompt)
        by_both[prompt.id, chat] = by_id[prompt.id] = text
        by_chat.setdefault(chat, text)
    chats = [_chat_name(prompt) for prompt in prompts.prompts]
    if not by_chat.keys().isdisjoint(chats):
        by_id = {}  # its prompts are the set's, as they stand there
    found = []
    for prompt, chat in zip(prompts.prompts, chats, strict=True):
        text = by_both.get((prompt.id, chat)) or by_chat.get(chat) or by_id.get(prompt.id)
        if text is None:
            raise UserError(f"{flag}={path}: the file has no answer to prompt {prompt.id!r} of the set")
        found.append(text)
    return found


def _chat_name(prompt: Prompt) -> str:
    return json.dumps(prompt.content)


def _teacher_answer(found: PromptRow) -> TeacherAnswer | None:
    _, place, row = found
    text = text_of(row, "teacher_response", place)
    status = status_of(text, row.get("finish_reason"))
    if status == "marked":
        return None
    if not (text or "").strip():
        raise UserError(f"{place}: `teacher_response` is missing or empty; give every row of the file one, or none")
    return TeacherAnswer(text, status != "cut")


def _is_workdir(path: pathlib.Path) -> bool:
    return (path / "run.json").is_file()
