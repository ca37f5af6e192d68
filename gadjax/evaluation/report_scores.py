"""The report's charts and tables of `results.json`: scores, comparisons, lengths.

All functions take the tree that `read_results` has checked, as JSON values. Judge, two-sample test, KL and teacher are
optional in an evaluation; what is null is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gadjax.evaluation import svg
from gadjax.evaluation.results import TEACHER, Histogram
from gadjax.evaluation.svg import axis, finite, number
from gadjax.evaluation.vote_results import HumanVotes
from gadjax.evaluation.vote_text import TITLES, vote_rows, vote_sentences


class Metric(NamedTuple):
    """A figure of a model on a set; it is drawn if it has a meaning, else it is in the table only."""

    title: str
    unit: str
    path: tuple[str, ...]  # into a model's scores; an interval is at low and high, or at NAME_low and NAME_high
    digits: int
    meaning: str = ""
    base: float = 0.0  # where bars start
    base_note: str = ""

    def bar(self, scores: Mapping[str, Any], name: str, colour: str) -> svg.Bar:
        """The figure with its interval."""
        *above, last = self.path
        group = scores
        for part in above:
            group = group.get(part) or {}
        own = (f"{last}_low", f"{last}_high")
        low, high = (finite(group.get(key)) for key in (own if own[0] in group else ("low", "high")))
        return svg.Bar(name, finite(group.get(last)), low, high, colour)


_JUDGED = "the judge's marks of the model's answer and the reference: mean of 100 s / (s + s_ref); higher is better"
_TOLD = "how often a fresh classifier tells the model's answers from the teacher's; lower is better"
_REVERSE = "from the model to the teacher, on the model's answers; lower is better"
_FORWARD = "from the teacher to the model, on the teacher's answers; lower is better"
_OVERLAP = "overlap with the teacher's answers, stemmed F-measure; what SeqKD trains for, no measure of quality"
METRICS = (
    Metric("Judge score", "0 to 100", ("judge", "score"), 1, _JUDGED, 50.0, "50: on a par with the reference"),
    Metric("Two-sample accuracy", "share", ("two_sample", "accuracy"), 3, _TOLD, 0.5, "0.5: cannot be told apart"),
    Metric("Reverse KL", "nats a token", ("kl", "reverse_per_token"), 3, _REVERSE),
    Metric("Forward KL", "nats a token", ("kl", "forward_per_token"), 3, _FORWARD),
    Metric("Reverse KL", "nats an answer", ("kl", "reverse_per_response"), 1),
    Metric("Forward KL", "nats an answer", ("kl", "forward_per_response"), 1),
    Metric("ROUGE-L", "0 to 1", ("rouge_l",), 3, _OVERLAP),
    Metric("n-gram F1", "n = 1 to 5", ("ngram_f1_mean",), 3),
    Metric("Length", "{length_unit}, mean", ("lengths", "mean"), 1),
    Metric("Length", "{length_unit}, 95th %", ("lengths", "p95"), 0),
    Metric("Cut", "share", ("lengths", "truncated"), 3),
    *(Metric("Distinct", f"{n}-grams", ("distinct", str(n)), 3) for n in range(1, 4)),
)


def colours(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The colour class of each model, in their order, and of the teacher."""
    return {model["name"]: f"c{n % svg.COLOURS}" for n, model in enumerate(models)} | {TEACHER: "quiet"}


def score_figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Charts of all that was measured: `metrics`, of (title, meaning), and `groups` of a set's `panels`.

    A panel has `title`, `unit` and `svg`. The panels of one metric have the same scale on every set.
    """
    paint = colours(results["models"])
    groups: dict[str, list[dict[str, Any]]] = {}
    metrics = []
    for metric in (metric for metric in METRICS if metric.meaning):
        rows = {
            name: [bar for bar in _bars(metric, scores, paint) if bar.name != TEACHER or bar.value is not None]
            for name, scores in _by_set(results)
        }
        rows = {name: bars for name, bars in rows.items() if any(bar.value is not None for bar in bars)}
        if not rows:
            continue
        metrics.append((metric.title, metric.meaning))
        every = [v for bars in rows.values() for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None]
        scale = axis(every, include=[metric.base])
        for name, bars in rows.items():
            label = f"{metric.title} on {name}: " + "; ".join(_words(bar, metric.digits) for bar in bars)
            drawing = svg.bars(label, bars, base=metric.base, scale=scale, note=metric.base_note, digits=metric.digits)
            groups.setdefault(name, []).append({"title": metric.title, "unit": metric.unit, "svg": drawing})
    return {"metrics": metrics, "groups": [{"name": name, "panels": panels} for name, panels in groups.items()]}


def score_table(results: Mapping[str, Any]) -> dict[str, Any]:
    """All figures as text: `columns` of (title, unit), and `groups` of a set's `rows` of a model's `cells`."""
    paint, unit = colours(results["models"]), _length_unit(results)
    by_set = {
        name: {metric: {bar.name: bar for bar in _bars(metric, scores, paint)} for metric in METRICS}
        for name, scores in _by_set(results)
    }
    kept = [m for m in METRICS if any(bar.value is not None for bars in by_set.values() for bar in bars[m].values())]
    groups = []
    for name, bars in by_set.items():
        rows = [
            {"model": m, "colour": paint[m], "cells": [_cell(bars[metric][m], metric) for metric in kept]}
            for m in paint
            if m in results["scores"][name]
        ]
        groups.append({"name": name, "rows": rows})
    return {"columns": [(metric.title, metric.unit.format(length_unit=unit)) for metric in kept], "groups": groups}


def comparisons(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pairs of models by the judge: set, names, counts, the p-value as text, its test, and a bar of shares."""
    rows = []
    for name, pairs in results["comparisons"].items():
        for pair in pairs:
            label = "{a} wins {win}, ties {tie}, loses {lose} against {b}".format(**pair)
            bar = svg.shares(label, [(key, pair[key]) for key in ("win", "tie", "lose")])
            p = "< 0.001" if pair["p"] < 0.001 else f"{pair['p']:.3f}"
            rows.append(pair | {"set": name, "p": p, "significant": pair["p"] < 0.05, "svg": bar})
    return rows


def vote_section(votes: HumanVotes) -> dict[str, Any]:
    """People's votes: `titles`, `rows` with a bar of shares, `sentences`, and the `test` of p."""
    rows = []
    for row in vote_rows(votes):
        pair = row.pair
        counts = [(key, getattr(pair, key)) for key in ("win", "tie", "lose")]
        label = f"{pair.a} wins {pair.win}, ties {pair.tie}, loses {pair.lose} votes against {pair.b}"
        shown: dict[str, Any] = {"set": row.prompt_set, "a": pair.a, "b": pair.b, "cells": row.cells, "p": row.p}
        shown |= {"votes": sum(count for _, count in counts), "prompts": pair.prompts, "significant": pair.p < 0.05}
        rows.append(shown | {"svg": svg.shares(label, counts)})
    test = votes.comparisons[0].test
    return {"titles": TITLES, "rows": rows, "sentences": vote_sentences(votes), "test": test}


def length_figures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Histograms by set: `name`, the `teacher`'s caption or None, and a model's `panels`."""
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
        top = max(share for part in found.values() for share in svg.shares_of(part, width))
        panels = []
        for model in models:
            colour, caption = paint[model], _lengths(scores[model], unit)
            label, other = f"Lengths of {model} on {name}: {caption}", teacher if model != TEACHER else None
            drawing = svg.histogram(label, found[model], other, colour=colour, top_share=top, unit=unit)
            panels.append({"name": model, "colour": colour, "svg": drawing, "caption": caption})
        caption = _lengths(scores[TEACHER], unit) if teacher else None
        figures.append({"name": name, "teacher": caption, "panels": panels})
    return figures


def missing(results: Mapping[str, Any]) -> list[str]:
    """Sentences that say what this evaluation did not measure."""
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
    parts = [number(v, metric.digits) for v in (bar.low, bar.high) if v is not None]
    return number(bar.value, metric.digits), " to ".join(parts)


def _words(bar: svg.Bar, digits: int) -> str:
    return f"{bar.name} " + ("not measured" if bar.value is None else number(bar.value, digits))


def _histogram(scores: Mapping[str, Any]) -> Histogram | None:
    """The histogram of lengths, or None if it cannot be drawn."""
    found = Histogram(**scores["lengths"]["histogram"])
    rising = all(left < right for left, right in itertools.pairwise(found.edges))
    return found if rising and any(found.counts) else None


def _length_unit(results: Mapping[str, Any]) -> str:
    return results["settings"].get("length_unit", "tokens")


def _lengths(scores: Mapping[str, Any], unit: str) -> str:
    mean, middle, cut = (scores["lengths"][key] for key in ("mean", "p50", "truncated"))
    share = number(100 * cut, 1 if cut < 0.1 else 0)
    return f"mean {number(mean, 0)}, median {number(middle, 0)} {unit}, {share} % cut"
