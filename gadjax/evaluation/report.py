"""`report.html`: an evaluation as one self-contained page.

The page requests nothing: style sheet, script, charts and answers are in the file. Its Content-Security-Policy allows
only that style sheet and that script, by their hashes. The page shows answers as text; nothing that a model wrote is
read as HTML.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import pathlib
import urllib.parse
from collections.abc import Mapping
from importlib import resources
from typing import Any

from gadjax.evaluation import report_answers, report_curves, report_scores
from gadjax.evaluation.results import read_results
from gadjax.files import whole_output, writing
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
    results = dataclasses.asdict(read_results(directory))
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
        "comparisons": report_scores.comparisons(results),
        "lengths": report_scores.length_figures(results),
        "run": curves,
        "run_name": pathlib.PurePath(workdir or "").name,
        "no_run": no_curves,
        "has_answers": bool(answers["rows"]),
        "answers": report_answers.as_script(answers),
    }
    out = directory / "report.html"
    with whole_output(out) as partial, writing(out):
        # UTF-8 cannot hold a lone surrogate; its escape is also JSON's.
        partial.write_text(_page(context), encoding="utf-8", errors="backslashreplace", newline="\n")
    return out


def _page(context: Mapping[str, Any]) -> str:
    import jinja2

    folder = resources.files("gadjax.evaluation") / "page"
    style, script, page = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
    policy += "base-uri 'none'; form-action 'none'"
    options: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(**options).from_string(page).render(context, policy=policy, style=style, script=script)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


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
