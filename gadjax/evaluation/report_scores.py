"""The report's figures and tables of `results.json`: scores, comparisons, lengths.

Of a tree as `read_results` checks it. What is null is left out: each of judge, two-sample test, KL and teacher is
optional in an evaluation.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gadjax.evaluation import svg

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of a model on a set."""

    title: str
    unit: str
    meaning: str
    path: tuple[str, ...]  # into a model's scores; its interval is at low and high, or at PATH_low and PATH_high
    digits: int
    base: float = 0.0  # where bars start
    base_note: str = ""
    drawn: bool = True  # else in the table only

    def bar(self, scores: Mapping[str, Any], name: str, colour: str) -> svg.Bar:
        """The figure with its interval."""
        *above, last = self.path
        group = scores
        for part in above:
            group = group.get(part) or {}
        own = (f"{last}_low", f"{last}_high")
        low, high = (finite(group.get(key)) for key in (own if own[0] in group else ("low", "high")))
        return svg.Bar(name, finite(group.get(last)), low, high, colour)


METRICS = (
    Metric(
        "Judge score",
        "0 to 100",
        "the judge's marks of the model's answer and the reference: mean of 100 s / (s + s_ref); higher is better",
        ("judge", "score"),
        1,
        50.0,
        "50: on a par with the reference",
    ),
    Metric(
        "Two-sample accuracy",
        "share",
        "how often a fresh classifier tells the model's answers from the teacher's; lower is better",
        ("two_sample", "accuracy"),
        3,
        0.5,
        "0.5: cannot be told apart",
    ),
    Metric(
        "Reverse KL",
        "nats a token",
        "from the model to the teacher, on the model's answers; lower is better",
        ("kl", "reverse_per_token"),
        3,
    ),
    Metric(
        "Forward KL",
        "nats a token",
        "from the teacher to the model, on the teacher's answers; lower is better",
        ("kl", "forward_per_token"),
        3,
    ),
    Metric("Reverse KL", "nats an answer", "", ("kl", "reverse_per_response"), 1, drawn=False),
    Metric("Forward KL", "nats an answer", "", ("kl", "forward_per_response"), 1, drawn=False),
    Metric(
        "ROUGE-L",
        "0 to 1",
        "overlap with the teacher's answers, stemmed F-measure; what SeqKD trains for, no measure of quality",
        ("rouge_l",),
        3,
    ),
    Metric("n-gram F1", "n = 1 to 5", "", ("ngram_f1_mean",), 3, drawn=False),
    Metric("Length", "{length_unit}, mean", "", ("lengths", "mean"), 1, drawn=False),
    Metric("Length", "{length_unit}, 95th %", "", ("lengths", "p95"), 0, drawn=False),
    Metric("Cut", "share", "", ("lengths", "truncated"), 3, drawn=False),
    Metric("Distinct", "1-grams", "", ("distinct", "1"), 3, drawn=False),
    Metric("Distinct", "2-grams", "", ("distinct", "2"), 3, drawn=False),
    Metric("Distinct", "3-grams", "", ("distinct", "3"), 3, drawn=False),
)


def finite(value: Any) -> float | None:
    """A number that can be drawn; None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def colours(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The colour class of each model, in their order; the teacher is quiet."""
    return {model["name"]: f"c{n % svg.COLOURS}" for n, model in enumerate(models)} | {TEACHER: "quiet"}


def score_figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Bars of what was measured: `metrics`, of (title, meaning), and `groups` of a set's `panels`.

    A panel has `title`, `unit` and `svg`; those of one metric have the same scale on every set.
    """
    paint = colours(results["models"])
    groups: dict[str, list[dict[str, Any]]] = {}
    metrics = []
    for metric in METRICS:
        if not metric.drawn:
            continue
        rows = {
            name: [bar for bar in _bars(metric, scores, paint) if bar.name != TEACHER or bar.value is not None]
            for name, scores in _by_set(results)
        }
        rows = {name: bars for name, bars in rows.items() if any(bar.value is not None for bar in bars)}
        if not rows:
            continue
        metrics.append((metric.title, metric.meaning))
        every = [v for bars in rows.values() for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None]
        scale = svg.axis(every, include=[metric.base])
        for name, bars in rows.items():
            label = f"{metric.title} on {name}: " + "; ".join(_words(bar, metric.digits) for bar in bars)
            drawing = svg.bars(label, bars, base=metric.base, scale=scale, note=metric.base_note, digits=metric.digits)
            groups.setdefault(name, []).append({"title": metric.title, "unit": metric.unit, "svg": drawing})
    return {"metrics": metrics, "groups": [{"name": name, "panels": panels} for name, panels in groups.items()]}


def score_table(results: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure as text: `columns` of (title, unit) and `groups` of a set's `rows` of a model's `cells`."""
    paint = colours(results["models"])
    groups = []
    for name, scores in _by_set(results):
        bars = {metric: {bar.name: bar for bar in _bars(metric, scores, paint)} for metric in METRICS}
        models = [model for model in paint if model in scores]
        groups.append((name, models, bars))
    kept = [m for m in METRICS if any(bar.value is not None for _, _, bars in groups for bar in bars[m].values())]
    return {
        "columns": [(metric.title, metric.unit.format(length_unit=_length_unit(results))) for metric in kept],
        "groups": [
            {
                "name": name,
                "rows": [
                    {"model": m, "colour": paint[m], "cells": [_cell(bars[metric][m], metric) for metric in kept]}
                    for m in models
                ],
            }
            for name, models, bars in groups
        ],
    }


def comparisons(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pairs of models by the judge: the set, both names, counts, the p-value as text, its test, a bar of shares."""
    rows = []
    for name, pairs in results["comparisons"].items():
        for pair in pairs:
            win, tie, lose, p = (pair[key] for key in ("win", "tie", "lose", "p"))
            label = f"{pair['a']} wins {win}, ties {tie}, loses {lose} against {pair['b']}"
            rows.append(
                {
                    "set": name,
                    **{key: pair[key] for key in ("a", "b")},
                    "win": win,
                    "tie": tie,
                    "lose": lose,
                    "p": "< 0.001" if p < 0.001 else f"{p:.3f}",
                    "significant": p < 0.05,
                    "test": pair["test"],
                    "svg": svg.shares(label, [("win", win), ("tie", tie), ("lose", lose)]),
                }
            )
    return rows


def length_figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Histograms by set: `name`, whether there is a `teacher`, and `panels` of a model's `name`, `svg`, `caption`."""
    paint, unit = colours(results["models"]), _length_unit(results)
    figures = []
    for name, scores in _by_set(results):
        found = {model: _histogram(scores[model]) for model in paint if model in scores}
        found = {model: part for model, part in found.items() if part}
        teacher = found.get(TEACHER)
        models = [model for model in found if model != TEACHER] or list(found)
        if not models:
            continue
        width = found[models[0]].edges[1] - found[models[0]].edges[0]
        top = max(share for part in found.values() for share in part.shares(width))
        panels = [
            {
                "name": model,
                "colour": paint[model],
                "svg": svg.histogram(
                    f"Lengths of {model} on {name}: {_lengths(scores[model], unit)}",
                    found[model],
                    teacher if model != TEACHER else None,
                    colour=paint[model],
                    top_share=top,
                    unit=unit,
                ),
                "caption": _lengths(scores[model], unit),
            }
            for model in models
        ]
        caption = _lengths(scores[TEACHER], unit) if teacher else None
        figures.append({"name": name, "teacher": caption, "panels": panels})
    return figures


def missing(results: Mapping[str, Any]) -> list[str]:
    """What this evaluation did not measure, a sentence each."""
    scores = [model for by_model in results["scores"].values() for model in by_model.values()]
    measured = lambda key: any(model.get(key) for model in scores)  # noqa: E731
    parts = [
        (measured("judge"), "No judge: scores and comparisons by a judge are left out."),
        (measured("two_sample"), "No two-sample test."),
        (measured("kl"), "No KL to the teacher."),
        (any(s["has_teacher"] for s in results["sets"]), "No answers of a teacher: nothing is compared with them."),
    ]
    return [text for there, text in parts if not there]


def _by_set(results: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for part in results["sets"]:
        yield part["name"], {model: _with_mean(figures) for model, figures in results["scores"][part["name"]].items()}


def _with_mean(scores: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = (scores["ngram_f1"] or {}).values()
    return {**scores, "ngram_f1_mean": sum(parts) / len(parts) if parts else None}


def _bars(metric: Metric, scores: Mapping[str, Any], paint: Mapping[str, str]) -> list[svg.Bar]:
    return [metric.bar(scores[name], name, colour) for name, colour in paint.items() if name in scores]


def _cell(bar: svg.Bar, metric: Metric) -> tuple[str, str]:
    if bar.value is None:
        return "–", ""
    parts = [svg.number(v, metric.digits) for v in (bar.low, bar.high) if v is not None]
    return svg.number(bar.value, metric.digits), " to ".join(parts)


def _words(bar: svg.Bar, digits: int) -> str:
    return f"{bar.name} " + ("not measured" if bar.value is None else svg.number(bar.value, digits))


def _histogram(scores: Mapping[str, Any]) -> svg.Histogram | None:
    edges, counts = (scores["lengths"]["histogram"][key] for key in ("edges", "counts"))
    rising = all(left < right for left, right in itertools.pairwise(edges))
    return svg.Histogram(edges, counts) if rising and sum(counts) else None


def _length_unit(results: Mapping[str, Any]) -> str:
    return results["settings"].get("length_unit", "tokens")


def _lengths(scores: Mapping[str, Any], unit: str) -> str:
    mean, middle, cut = (scores["lengths"][key] for key in ("mean", "p50", "truncated"))
    parts = [
        f"mean {svg.number(mean, 0)}",
        f"median {svg.number(middle, 0)} {unit}",
        f"{svg.number(100 * cut, 1 if cut < 0.1 else 0)} % cut",
    ]
    return ", ".join(parts)
