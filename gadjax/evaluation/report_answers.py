"""The report's answers side by side: one JSON value that the page's script browses."""

from __future__ import annotations

import pathlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from gadjax.data.table_files import read_jsonl
from gadjax.errors import UserError
from gadjax.evaluation.html_page import text_in_part
from gadjax.evaluation.model_sources import REFERENCE
from gadjax.evaluation.report_scores import colours
from gadjax.evaluation.results import TEACHER
from gadjax.evaluation.svg import finite
from gadjax.stage_table import stage_title


def read_answers(directory: pathlib.Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts with every model's answer.

    Returns:
      `columns` (who answered: `name`, `note`, `colour`), `sets` (names), `rows` (`set`, an index; `id`; `category`;
      `prompt`, pairs of role and text; `answers`, by the column's index). A text is a string, or its first part and
      its length in characters if it is longer than the page holds.

    Raises:
      UserError: a file of answers or verdicts cannot be read.
    """
    paint = colours(results["models"])
    columns = [{"name": TEACHER, "note": "", "colour": "quiet"}, {"name": REFERENCE, "note": "", "colour": "quiet"}]
    columns += [{"name": m["name"], "note": _note(m), "colour": paint[m["name"]]} for m in results["models"]]
    judged = _verdicts(directory, results)
    rows: list[Any] = []
    for number, part in enumerate(results["sets"]):
        by_id: dict[str, dict[str, Any]] = {}
        for column, who in enumerate(columns):
            path = directory / "answers" / part["name"] / f"{who['name']}.jsonl"
            if not path.is_file():
                continue
            for place, row in read_jsonl(path):
                key = str(_field(row, "id", place))
                if key not in by_id:
                    prompt = [(turn["role"], text_in_part(turn["content"])) for turn in _field(row, "content", place)]
                    category = row.get("category")
                    by_id[key] = {"set": number, "id": key, "category": category, "prompt": prompt, "answers": {}}
                answer = {"text": text_in_part(_field(row, "response", place) or ""), "tokens": row.get("tokens")}
                answer["cut"] = row.get("finish_reason") == "length"
                by_id[key]["answers"][column] = answer | judged.get((part["name"], key, who["name"]), {})
        rows += by_id.values()
    used = sorted({column for row in rows for column in row["answers"]})
    for row in rows:
        row["answers"] = {used.index(column): answer for column, answer in row["answers"].items()}
    return {"columns": [columns[n] for n in used], "sets": [part["name"] for part in results["sets"]], "rows": rows}


def add_samples(answers: dict[str, Any], path: pathlib.Path, *, note: str = " (run)") -> None:
    """Adds a run's `samples.jsonl` as a set: the student's answers to held-out prompts after each stage.

    Args:
      answers: as `read_answers` returns them.
      path: the file.
      note: what follows the names of the stages.

    Raises:
      UserError: a line is not a sample.
    """
    latest: dict[str, int] = {}
    rows: dict[int, dict[str, Any]] = {}
    samples = [(place, row) for place, row in read_jsonl(path)]
    for place, sample in samples:
        latest[_field(sample, "stage", place)] = _field(sample, "step", place)
    stages = list(latest)
    teacher = next((n for n, column in enumerate(answers["columns"]) if column["name"] == TEACHER), None)
    if teacher is None:
        answers["columns"].append({"name": TEACHER, "note": "", "colour": "quiet"})
        teacher = len(answers["columns"]) - 1
    first = len(answers["columns"])
    answers["columns"] += [
        {"name": f"{stage_title(stage)}{note}", "note": f"step {latest[stage]:,}", "colour": f"c{n % 6}"}
        for n, stage in enumerate(stages)
    ]
    number = len(answers["sets"])
    answers["sets"].append("held-out samples of the run")
    for place, sample in samples:
        stage = sample["stage"]
        if sample["step"] != latest[stage]:
            continue
        key = _field(sample, "row", place)
        if key not in rows:
            prompt = [("user", text_in_part(_field(sample, "prompt", place)))]
            rows[key] = {"set": number, "id": f"row {key}", "category": None, "prompt": prompt, "answers": {}}
            rows[key]["answers"][teacher] = {"text": text_in_part(_field(sample, "teacher", place))}
        rows[key]["answers"][first + stages.index(stage)] = {"text": text_in_part(_field(sample, "student", place))}
    answers["rows"] += rows.values()


def _verdicts(directory: pathlib.Path, results: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Marks by set, id and model; if an answer was judged several times, their means."""
    name = results["verdicts"]
    path = directory / name if name else None
    if path is None or not path.is_file():
        return {}
    found: dict[tuple[str, str, str], list[tuple[float | None, float | None, str]]] = defaultdict(list)
    for place, row in read_jsonl(path):
        key = (_field(row, "set", place), str(_field(row, "id", place)), _field(row, "model", place))
        found[key].append((finite(row.get("score")), finite(row.get("reference_score")), row.get("text") or ""))
    judged = {}
    for key, verdicts in found.items():
        whole = [(own, other) for own, other, _ in verdicts if None not in (own, other) and own + other > 0]
        judged[key] = {"verdict": text_in_part("\n\n".join(text for _, _, text in verdicts))}
        if whole:
            marks = zip(*((own, other, 100 * own / (own + other)) for own, other in whole), strict=True)
            means = (round(sum(values) / len(whole), 2) for values in marks)
            judged[key] |= dict(zip(("mark", "reference", "score"), means, strict=True))
    return judged


def _field(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise UserError(f"{place}: no `{name}`; run gadjax.evaluate again to write the file anew")
    return row[name]


def _note(model: Mapping[str, Any]) -> str:
    stage = stage_title(model["stage"]) if model["stage"] else None
    step = None if model["step"] is None else f"step {model['step']:,}"
    best = f"best of {model['best_of']['samples']}" if model["best_of"] else None
    return ", ".join(filter(None, (stage, step, best)))
