"""`run.html`: a run as one self-contained page, with its figures by stage, its curves, and answers before and after."""

from __future__ import annotations

import pathlib
from typing import Any

from gadjax.evaluation import report_answers, report_curves
from gadjax.evaluation.html_page import as_script, write_page
from gadjax.metrics import heldout_figures, read_metrics
from gadjax.stage_table import heldout_cells, heldout_columns, stage_title


def write_run_page(workdir: pathlib.Path) -> pathlib.Path | None:
    """Writes `run.html` into a run's workdir and returns its path; None if nothing was measured on held-out prompts.

    Args:
      workdir: `metrics.jsonl` and, if it is there, `samples.jsonl` are read.

    Raises:
      UserError: a log cannot be read, or the page not be written.
    """
    records, samples = read_metrics(workdir / "metrics.jsonl"), workdir / "samples.jsonl"
    figures = heldout_figures(records)
    if not figures:
        return None
    columns = heldout_columns(figures)
    answers: dict[str, Any] = {"columns": [], "sets": [], "rows": []}
    if samples.is_file():
        report_answers.add_samples(answers, samples, note="")
    context = {
        "run_name": workdir.resolve().name,
        "columns": [(column.title.replace("\n", " "), column.meaning) for column in columns],
        "stages": [(stage_title(stage), heldout_cells(found, columns)) for stage, found in figures.items()],
        "run": report_curves.run_figures(records),
        "has_answers": bool(answers["rows"]),
        "answers": as_script(answers),
    }
    files: Any = {"styles": ["report.css"], "scripts": ["passage.js", "report.js"]}
    return write_page(workdir / "run.html", "run.html", context, **files)
