"""Tables of `results.json`: in `table.md`, the judge's first (the paper's Table 2), and in the terminal."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gadjax.evaluation.prompt_sets import DISPLAY_NAMES
from gadjax.evaluation.results import TEACHER, Results, Scores
from gadjax.evaluation.vote_text import vote_cells, vote_rows, vote_sentences
from gadjax.files import whole_output, writing

FILE = "table.md"
_NONE = "–"
_SIGN = "100 · mean(s / (s + s_ref)), 50 is parity with the reference"

Cell = Callable[[Scores], str | None]
Estimate = tuple[float, float, float]  # a figure and the ends of its interval


def write_table(directory: pathlib.Path, results: Results) -> pathlib.Path:
    """Writes `directory/table.md`, whole or not at all, and returns its path."""
    path = directory / FILE
    with whole_output(path) as partial, writing(path):
        partial.write_text(markdown(results), encoding="utf-8")
    return path


def markdown(results: Results) -> str:
    """All tables as Markdown."""
    parts = _best_of(results)
    if judge := results.judge:
        parts += [
            f"Judge score by {judge.model} (reference answers: {judge.reference_model}): {_SIGN}; 95 % bootstrap "
            "interval over prompts.",
            _by_set(results, lambda s: _bracket(_judge(s), 1)),
        ]
    if any(scores.two_sample for of_set in results.scores.values() for scores in of_set.values()):
        parts += [
            "Two-sample test: accuracy in % of fresh classifiers, cross-validated, on answers drawn at temperature "
            f"{_tested_at(results)}; 50 is indistinguishable from the teacher.",
            _by_set(results, lambda s: _bracket(_two_sample(s), 1)),
        ]
    for prompts in results.sets:
        title = f"{_display(prompts.name)}, {prompts.prompts} prompts"
        if at := _teacher_temperature(results):
            title += f", KLs between the models at temperature 1 and the teacher at {at}"
        titles, rows = _cells(results, prompts.name, _columns(results))
        parts += [f"{title}:", _table(["model", *titles], rows)]
    comparisons = [(name, one) for name, found in results.comparisons.items() for one in found]
    if comparisons:
        rows = [
            [_display(name), f"{one.a} / {one.b}", f"{one.win} / {one.tie} / {one.lose}", f"{one.p:.3g}"]
            for name, one in comparisons
        ]
        parts += [f"By the judge, prompt by prompt ({comparisons[0][1].test}):"]
        parts += [_table(["set", "models", "win / tie / lose", "p"], rows)]
    if votes := results.votes:
        test = f"{votes.comparisons[0].test}, over prompts"
        parts += [f"By people, in % of votes with 95 % bootstrap intervals over prompts ({test}):"]
        titles, rows = vote_cells(vote_rows(votes))
        rows = [[_display(name), *rest] for name, *rest in rows]
        parts += [_table(titles, rows), " ".join(vote_sentences(votes))]
    return "\n\n".join(parts) + "\n"


def print_scores(console: Console, results: Results) -> None:
    """Prints the main figures of each set in 80 columns, a row for each model; the rest is in `table.md`."""
    columns: dict[str, Cell] = {
        "judge": lambda s: _plus_minus(_judge(s), 1),
        "two-sample": lambda s: _plus_minus(_two_sample(s), 1),
        "ROUGE-L": lambda s: _decimal(s.rouge_l),
        "length": lambda s: f"{s.lengths.mean:.1f}",
        "reverse KL": lambda s: _plus_minus(_kl(s, "reverse_per_token"), 3),
        "forward KL": lambda s: _plus_minus(_kl(s, "forward_per_token"), 3),
    }
    meanings = {
        "judge": _SIGN,
        "two-sample": f"accuracy in % at temperature {_tested_at(results)}, 50 is indistinguishable",
        "length": f"mean, in {results.settings.get('length_unit', 'tokens')}",
        "reverse KL": f"nats a token, the teacher at temperature {_teacher_temperature(results)}; forward KL alike",
    }
    shown: list[str] = []
    for prompts in results.sets:
        titles, rows = _cells(results, prompts.name, columns)
        shown += titles
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("model", overflow="fold")
        for name in titles:
            table.add_column(name, justify="right", no_wrap=True)
        for model, *cells in rows:
            table.add_row(escape(model), *cells)
        title = f"{_display(prompts.name)}, {prompts.prompts} prompts"
        console.print(f"\n{title}", markup=False, highlight=False, soft_wrap=True)
        console.print(table, highlight=False)
    _print_votes(console, results)
    legend = [f"{name}: {meaning}" for name, meaning in meanings.items() if name in shown]
    legend += ["±: half of the 95 % interval"] if legend else []
    if legend := _best_of(results) + legend:
        console.print("\n".join(legend), markup=False, highlight=False)
    console.print()


def _print_votes(console: Console, results: Results) -> None:
    """Prints people's preferences, if there are any."""
    if not results.votes:
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for title in ("set", "models"):
        table.add_column(title, overflow="fold")
    for title in ("votes", "win − lose", "95 % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in vote_rows(results.votes):
        pair = row.pair
        names, count = escape(f"{pair.a} / {pair.b}"), f"{pair.win + pair.tie + pair.lose:,}"
        table.add_row(escape(_display(row.prompt_set)), names, count, *row.cells[-1])
    console.print("\nPeople's votes")
    console.print(table, highlight=False)
    console.print("\n".join(vote_sentences(results.votes)), markup=False, highlight=False)


def _best_of(results: Results) -> list[str]:
    """What is said of each model that answers with the best of several draws."""
    return [
        f"{model.name}: the best of {how.samples} draws at temperature {how.temperature:g}, by the discriminator "
        f"{how.discriminator} of kind {how.kind}"
        for model in results.models
        if (how := model.best_of)
    ]


def _tested_at(results: Results) -> str:
    """The temperature of the answers in the two-sample test."""
    temperature = results.settings.get("two_sample_temperature")
    return _NONE if temperature is None else f"{temperature:g}"


def _teacher_temperature(results: Results) -> str | None:
    """The teacher's temperature in all KLs; None if there are none."""
    kls = (scores.kl for of_set in results.scores.values() for scores in of_set.values() if scores.kl)
    return next((f"{kl.teacher_temperature:g}" for kl in kls), None)


def _by_set(results: Results, cell: Cell) -> str:
    """A table of one figure with a row for each model and a column for each set."""
    rows = []
    for name in _models(results):
        cells = [results.scores[prompts.name].get(name) for prompts in results.sets]
        rows.append([name, *((scores and cell(scores)) or _NONE for scores in cells)])
    rows = [row for row in rows if row[0] != TEACHER or any(text != _NONE for text in row[1:])]
    return _table(["model", *(_display(prompts.name) for prompts in results.sets)], rows)


def _columns(results: Results) -> dict[str, Any]:
    """The columns of a set's table, by title."""
    return {
        "ROUGE-L": lambda s: _decimal(s.rouge_l),
        **{f"{n}-gram F1": (lambda s, n=n: _decimal(s.ngram_f1 and s.ngram_f1[str(n)])) for n in range(1, 6)},
        **{f"distinct-{n}": (lambda s, n=n: _decimal(s.distinct[str(n)])) for n in range(1, 4)},
        f"length ({results.settings.get('length_unit', 'tokens')})": lambda s: f"{s.lengths.mean:.1f}",
        "p95": lambda s: f"{s.lengths.p95:.0f}",
        "cut": lambda s: f"{100 * s.lengths.truncated:.1f} %",
        **{
            f"{way} KL a {unit}": (lambda s, name=f"{way}_per_{unit}": _bracket(_kl(s, name), 3))
            for way in ("reverse", "forward")
            for unit in ("token", "response")
        },
    }


def _cells(results: Results, name: str, columns: Mapping[str, Cell]) -> tuple[list[str], list[list[str]]]:
    """The titles of columns that any model of a set has a figure for, and a row for each model."""
    models = [model for model in _models(results) if model in results.scores[name]]
    cells = {title: [cell(results.scores[name][model]) for model in models] for title, cell in columns.items()}
    titles = [title for title, found in cells.items() if any(found)]
    return titles, [[model, *(cells[title][i] or _NONE for title in titles)] for i, model in enumerate(models)]


def _models(results: Results) -> list[str]:
    return [*(model.name for model in results.models), TEACHER]


def _display(name: str) -> str:
    return DISPLAY_NAMES.get(name, name)


def _judge(scores: Scores) -> Estimate | None:
    return (scores.judge.score, scores.judge.low, scores.judge.high) if scores.judge else None


def _two_sample(scores: Scores) -> Estimate | None:
    """The accuracy in percent."""
    test = scores.two_sample
    return (100 * test.accuracy, 100 * test.low, 100 * test.high) if test else None


def _kl(scores: Scores, name: str) -> Estimate | None:
    kl: Any = scores.kl
    return (getattr(kl, name), getattr(kl, f"{name}_low"), getattr(kl, f"{name}_high")) if kl else None


def _bracket(estimate: Estimate | None, digits: int) -> str | None:
    return estimate and "{:z.{d}f} [{:z.{d}f}, {:z.{d}f}]".format(*estimate, d=digits)


def _plus_minus(estimate: Estimate | None, digits: int) -> str | None:
    return estimate and f"{estimate[0]:z.{digits}f} ± {(estimate[2] - estimate[1]) / 2:.{digits}f}"


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---", *("---:" for _ in titles[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
