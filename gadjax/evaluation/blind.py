"""`blind.html`: a page on which people compare two answers to a prompt without seeing which models gave them.

The page names no model. An answer's model stands in it as a hash (`model_key`), which only the names of the
evaluation's models resolve. Hashes decide too which answer stands on the left, and in which order the pairs come: both
are the same on every machine, and tell nothing about the models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gadjax.data.chats import Messages
from gadjax.data.table_files import read_jsonl
from gadjax.evaluation.html_page import as_script, text_in_part, write_page
from gadjax.evaluation.results import TEACHER

FILE = "blind.html"
Pair = tuple[str, str]  # names of two models


class Sheet(NamedTuple):
    """A prompt of a set with every model's answer."""

    prompt_set: str
    id: str
    content: Messages
    answers: Mapping[str, str]  # by the model's name


class Question(NamedTuple):
    """Two answers that a person compares; `left` and `right` are names of models."""

    sheet: Sheet
    left: str
    right: str


def read_sheets(directory: pathlib.Path, sets: Sequence[str], models: Sequence[str]) -> list[Sheet]:
    """The prompts of an evaluation with the answers of its models, and of the teacher where a set has them.

    Args:
      directory: the output of gadjax.evaluate, which holds `answers/SET/MODEL.jsonl`.
      sets: names of the sets.
      models: names of the models.
    """
    sheets: list[Sheet] = []
    for name in sets:
        of_set: dict[str, Sheet] = {}
        for model in (*models, TEACHER):
            path = directory / "answers" / name / f"{model}.jsonl"
            if not path.is_file():
                continue
            for _, row in read_jsonl(path):
                sheet = of_set.setdefault(row["id"], Sheet(name, row["id"], row["content"], {}))
                of_set[row["id"]] = sheet._replace(answers={**sheet.answers, model: row["response"] or ""})
        sheets += of_set.values()
    return sheets


def fingerprint(sheets: Sequence[Sheet]) -> str:
    """A hash of all prompts and answers with the models' names; votes belong to the answers of one fingerprint.

    The order of sets, prompts and models does not change it, nor does the number of pairs that are asked for.
    """
    rows = sorted(json.dumps(sheet, sort_keys=True) for sheet in sheets)
    return _hash(*rows)[:16]


def model_key(print_: str, model: str) -> str:
    """What stands for a model on the page and in files of votes: a hash of its name and the answers' fingerprint."""
    return _hash(print_, model)[:12]


def pairs_to_ask(models: Sequence[str], *, teacher: bool) -> list[Pair]:
    """The pairs of models whose answers are compared: those that the judge compares.

    Args:
      models: names of the models, in their order.
      teacher: whether the judge judges the teacher's answers too. A model that is alone is compared with the teacher in
        any case.
    """
    return list(itertools.combinations([*models, TEACHER] if teacher or len(models) == 1 else models, 2))


def choose(sheets: Sequence[Sheet], pairs: Sequence[Pair], limit: int) -> list[Question]:
    """The pairs of answers that people are asked about, in the order in which they are asked.

    Every prompt comes once before one comes again with another pair of models, and all pairs of models come equally
    often: whoever stops early has voted on a fair part. Answers with the same text are not asked about.

    Args:
      sheets: of all sets.
      pairs: of models.
      limit: the number of questions, at most.
    """
    print_ = fingerprint(sheets)
    order = sorted(sheets, key=lambda sheet: _hash(print_, sheet.prompt_set, sheet.id))
    rest = [[pair for pair in pairs if _differ(sheet, pair)] for sheet in order]
    used: Counter[Pair] = Counter()
    questions: list[Question] = []
    while any(rest) and len(questions) < limit:
        for sheet, open_pairs in zip(order, rest, strict=True):
            if not open_pairs or len(questions) == limit:
                continue
            drawn = {pair: _hash(print_, sheet.prompt_set, sheet.id, *sorted(pair)) for pair in open_pairs}
            pair = min(open_pairs, key=lambda pair: (used[pair], drawn[pair]))
            open_pairs.remove(pair)
            used[pair] += 1
            left, right = sorted(pair) if int(drawn[pair][-1], 16) % 2 else sorted(pair)[::-1]
            questions.append(Question(sheet, left, right))
    return questions


def write_blind(directory: pathlib.Path, sheets: Sequence[Sheet], pairs: Sequence[Pair], limit: int) -> bool:
    """Writes `blind.html` into an evaluation's folder; returns whether there is anything to compare.

    Without anything to compare, the page of an earlier evaluation is removed.

    Args:
      directory: the output of gadjax.evaluate.
      sheets, pairs, limit: as in `choose`.

    Raises:
      UserError: the page cannot be written.
    """
    path = directory / FILE
    questions = choose(sheets, pairs, limit)
    if not questions:
        path.unlink(missing_ok=True)
        return False
    print_ = fingerprint(sheets)
    rows = [
        {
            "set": sheet.prompt_set,
            "id": sheet.id,
            "prompt": [(turn["role"], text_in_part(turn["content"])) for turn in sheet.content],
            **{
                side: {"model": model_key(print_, model), "text": text_in_part(sheet.answers[model])}
                for side, model in (("left", left), ("right", right))
            },
        }
        for sheet, left, right in questions
    ]
    context = {"data": as_script({"fingerprint": print_, "questions": rows}), "count": len(rows)}
    files = {"styles": ["report.css", "blind.css"], "scripts": ["passage.js", "blind.js"]}
    write_page(path, FILE, context, **files)
    return True


def _differ(sheet: Sheet, pair: Pair) -> bool:
    """Whether both models answered the prompt, each with a text of its own."""
    texts = [sheet.answers[model].strip() for model in pair if model in sheet.answers]
    return len(texts) == 2 and texts[0] != texts[1]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(map(json.dumps, parts)).encode()).hexdigest()
