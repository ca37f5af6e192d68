"""The figures of `results.json` as tables: `table.md`, the judge's first (the paper's Table 2), and on the terminal."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gadjax.evaluation.prompt_sets import DISPLAY_NAMES
from gadjax.evaluation.results import TEACHER, Kl, Results, Scores, TwoSampleScore
from gadjax.files import whole_output, writing

FILE = "table.md"
_NONE = "–"


def write_table(directory: pathlib.Path, results: Results) -> pathlib.Path:
    """Writes `directory/table.md`, whole or not at all, and gives its path."""
    path = directory / FILE
    with whole_output(path) as partial, writing(path):
        partial.write_text(markdown(results), encoding="utf-8")
    return path


def markdown(results: Results) -> str:
    """All tables."""
    parts = []
    if results.judge:
        judge = results.judge
        parts += [
            f"Judge score by {judge.model} (reference answers: {judge.reference_model}): 100 · mean(s / (s + s_ref)), "
            "50 is parity with the reference; 95 % bootstrap interval over prompts.",
            _by_set(results, lambda s: s.judge and f"{s.judge.score:.1f} [{s.judge.low:.1f}, {s.judge.high:.1f}]"),
        ]
    if any(scores.two_sample for _, scores in _entries(results)):
        parts += [
            "Two-sample test: accuracy in % of fresh classifiers, cross-validated, on answers drawn at temperature "
            f"{_tested_at(results)}; 50 is indistinguishable from the teacher.",
            _by_set(results, lambda s: s.two_sample and _percent(s.two_sample)),
        ]
    for prompts in results.sets:
        title = f"{_display(prompts.name)}, {prompts.prompts} prompts"
        if at := _teacher_temperature(results):
            title += f", KLs between the models at temperature 1 and the teacher at {at}"
        parts += [f"{title}:", _of_set(results, prompts.name)]
    comparisons = [(name, one) for name, found in results.comparisons.items() for one in found]
    if comparisons:
        rows = [
            [_display(name), f"{one.a} / {one.b}", f"{one.win} / {one.tie} / {one.lose}", f"{one.p:.3g}"]
            for name, one in comparisons
        ]
        parts += [f"By the judge, prompt by prompt ({comparisons[0][1].test}):"]
        parts += [_table(["set", "models", "win / tie / lose", "p"], rows)]
    return "\n\n".join(parts) + "\n"


def print_scores(console: Console, results: Results) -> None:
    """Prints the main figures of each set, a row for each model, in 80 columns; the rest is in `table.md`."""
    columns: dict[str, Callable[[Scores], str | None]] = {
        "judge": lambda s: s.judge and _plus_minus(s.judge.score, s.judge.low, s.judge.high, 1),
        "two-sample": lambda s: s.two_sample and _plus_minus(*(100 * x for x in _accuracy(s.two_sample)), 1),
        "ROUGE-L": lambda s: _decimal(s.rouge_l),
        "length": lambda s: f"{s.lengths.mean:.1f}",
        "reverse KL": lambda s: s.kl and _plus_minus(*_kl(s.kl, "reverse_per_token"), 3),
        "forward KL": lambda s: s.kl and _plus_minus(*_kl(s.kl, "forward_per_token"), 3),
    }
    meanings = {
        "judge": "100 · mean(s / (s + s_ref)), 50 is parity with the reference",
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
    legend = [f"{name}: {meaning}" for name, meaning in meanings.items() if name in shown]
    if legend:
        console.print("\n".join([*legend, "±: half of the 95 % interval"]), markup=False, highlight=False)
    console.print()


def _tested_at(results: Results) -> str:
    """The temperature of the answers that the two-sample test was of."""
    temperature = results.settings.get("two_sample_temperature")
    return _NONE if temperature is None else f"{temperature:g}"


def _teacher_temperature(results: Results) -> str | None:
    """The teacher's in all KLs; None where there are none."""
    return next((f"{scores.kl.teacher_temperature:g}" for _, scores in _entries(results) if scores.kl), None)


def _by_set(results: Results, cell: Callable[[Scores], str | None]) -> str:
    """A row for each model, a column for each set."""
    names = _models(results)
    rows = []
    for name in names:
        cells = [results.scores[prompts.name].get(name) for prompts in results.sets]
        rows.append([name, *((scores and cell(scores)) or _NONE for scores in cells)])
    rows = [row for row in rows if row[0] != TEACHER or any(text != _NONE for text in row[1:])]
    return _table(["model", *(_display(prompts.name) for prompts in results.sets)], rows)


def _of_set(results: Results, name: str) -> str:
    """A row for each model, a column for each figure that any of them has."""
    columns: dict[str, Callable[[Scores], str | None]] = {
        "ROUGE-L": lambda s: _decimal(s.rouge_l),
        **{f"{n}-gram F1": (lambda s, n=n: _decimal(s.ngram_f1 and s.ngram_f1[str(n)])) for n in range(1, 6)},
        **{f"distinct-{n}": (lambda s, n=n: _decimal(s.distinct[str(n)])) for n in range(1, 4)},
        f"length ({results.settings.get('length_unit', 'tokens')})": lambda s: f"{s.lengths.mean:.1f}",
        "p95": lambda s: f"{s.lengths.p95:.0f}",
        "cut": lambda s: f"{100 * s.lengths.truncated:.1f} %",
        "reverse KL a token": lambda s: s.kl and _interval(s.kl, "reverse_per_token"),
        "reverse KL a response": lambda s: s.kl and _interval(s.kl, "reverse_per_response"),
        "forward KL a token": lambda s: s.kl and _interval(s.kl, "forward_per_token"),
        "forward KL a response": lambda s: s.kl and _interval(s.kl, "forward_per_response"),
    }
    titles, rows = _cells(results, name, columns)
    return _table(["model", *titles], rows)


def _cells(
    results: Results, name: str, columns: Mapping[str, Callable[[Scores], str | None]]
) -> tuple[list[str], list[list[str]]]:
    """The titles that any model of a set has a figure for, and a row for each model."""
    models = [model for model in _models(results) if model in results.scores[name]]
    cells = {title: [cell(results.scores[name][model]) for model in models] for title, cell in columns.items()}
    titles = [title for title, found in cells.items() if any(found)]
    return titles, [[model, *(cells[title][i] or _NONE for title in titles)] for i, model in enumerate(models)]


def _models(results: Results) -> list[str]:
    return [*(model.name for model in results.models), TEACHER]


def _entries(results: Results) -> Iterable[tuple[str, Scores]]:
    return (entry for of_set in results.scores.values() for entry in of_set.items())


def _display(name: str) -> str:
    return DISPLAY_NAMES.get(name, name)


def _percent(test: TwoSampleScore) -> str:
    value, low, high = (100 * x for x in _accuracy(test))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _accuracy(test: TwoSampleScore) -> tuple[float, float, float]:
    """An accuracy, and its interval."""
    return test.accuracy, test.low, test.high


def _interval(kl: Kl, name: str) -> str:
    value, low, high = _kl(kl, name)
    return f"{value:z.3f} [{low:z.3f}, {high:z.3f}]"


def _kl(kl: Kl, name: str) -> tuple[float, float, float]:
    """A KL, and its interval."""
    return getattr(kl, name), getattr(kl, f"{name}_low"), getattr(kl, f"{name}_high")


def _plus_minus(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:z.{digits}f} ± {(high - low) / 2:.{digits}f}"


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---", *("---:" for _ in titles[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
