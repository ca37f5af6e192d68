"""`report.html`: an evaluation as one self-contained page (`gadjax.evaluation.html_page`)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

from gadjax.evaluation import report_answers, report_curves, report_scores
from gadjax.evaluation.html_page import as_script, write_page
from gadjax.evaluation.report_verdict import findings
from gadjax.evaluation.results import read_results
from gadjax.metrics import read_metrics
from gadjax.stage_table import stage_title


def write_report(directory: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` beside an evaluation's `results.json` and returns its path.

    The page leaves out what the evaluation lacks (a judge, a teacher, a run, answers), and says so.

    Args:
      directory: the output of gadjax.evaluate: `results.json`; `answers/` and the verdicts, if they are there. The
        run's `metrics.jsonl` and `samples.jsonl` are read too, if results.json names a run that is still there.

    Raises:
      UserError: `read_results` refuses results.json, or a file that it names cannot be read.
    """
    directory = pathlib.Path(directory)
    read = read_results(directory)
    results = dataclasses.asdict(read)
    workdir = results["run"] and results["run"]["workdir"]
    curves, no_curves = _curves(directory, workdir)
    answers = report_answers.read_answers(directory, results)
    if workdir and (samples := directory / workdir / "samples.jsonl").is_file():
        report_answers.add_samples(answers, samples)
    context = {
        "results": results,
        "summary": _summary(results),
        "paint": report_scores.colours(results["models"]),
        "stage_title": stage_title,
        "file_name": lambda path: pathlib.PurePath(path).name,
        "settings": _settings(results),
        "missing": report_scores.missing(results),
        "figures": report_scores.score_figures(results),
        "table": report_scores.score_table(results),
        "findings": findings(results, read.votes),
        "comparisons": report_scores.comparisons(results),
        "tests": "; ".join(sorted({pair["test"] for pairs in results["comparisons"].values() for pair in pairs})),
        "votes": report_scores.vote_section(read.votes) if read.votes else None,
        "lengths": report_scores.length_figures(results),
        "run": curves,
        "run_name": pathlib.PurePath(workdir or "").name,
        "no_run": no_curves,
        "has_answers": bool(answers["rows"]),
        "answers": as_script(answers),
    }
    files: Any = {"styles": ["report.css"], "scripts": ["passage.js", "report.js"]}
    return write_page(directory / "report.html", "report.html", context, **files)


def _curves(directory: pathlib.Path, workdir: str | None) -> tuple[dict[str, Any] | None, str]:
    """The run's curves, or None and why there are none."""
    if not workdir:
        return None, "The evaluation names no run, so there are no curves."
    path = directory / workdir / "metrics.jsonl"  # an absolute workdir stands by itself
    if not path.is_file():
        name = pathlib.PurePath(workdir).name
        return None, f"The run's metrics.jsonl is no longer in {name}, so there are no curves."
    curves = report_curves.run_figures(read_metrics(path))
    if curves["panels"] or curves["warnings"]:
        return curves, ""
    return None, "The run has no figures of held-out prompts yet, so there are no curves."


def _summary(results: Mapping[str, Any]) -> str:
    models, sets = len(results["models"]), len(results["sets"])
    what = f"{models} {'model' if models == 1 else 'models'} on {sets} {'set' if sets == 1 else 'sets'} of prompts"
    return " · ".join(filter(None, (what, results["created"][:10], f"gadjax {results['gadjax']}")))


def _settings(results: Mapping[str, Any]) -> dict[str, str]:
    """The settings and the judge as text."""
    shown = {
        name.replace("_", " "): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in results["settings"].items()
    }
    if judge := results["judge"]:
        # The host alone: an address may hold a name and a password.
        host = urllib.parse.urlsplit(judge["base_url"]).hostname
        shown["judge"] = judge["model"] + (f" at {host}" if host else "")
        shown["reference answers"] = judge["reference_model"]
        shown["verdicts"] = ", ".join(f"{judge[key]:,} {key}" for key in ("retried", "malformed"))
    return shown
