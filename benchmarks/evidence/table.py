"""The tables of a suite, for people: means over seeds with their ranges, and differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.evidence.quality import paired
from benchmarks.harness import report

Row = dict[str, Any]  # `arm`, `seed` (None for the teacher), `updates`, and figures; `baseline` names another arm

# The title of a table, and its columns: (figure, heading, digits).
BLOCKS: dict[str, list[tuple[str, str, int]]] = {
    "Distance from the teacher (nats; reverse: E_q[log q - log p], forward: E_p[log p - log q])": [
        ("reverse_kl_response", "reverse/response", 2),
        ("reverse_kl_token", "reverse/token", 3),
        ("forward_kl_response", "forward/response", 2),
        ("forward_kl_token", "forward/token", 3),
        ("nll", "nll/token", 3),
        ("two_sample", "two-sample", 3),
    ],
    "Answers at temperature 1": [
        ("coverage", "coverage", 3),
        ("distinct_1", "distinct-1", 3),
        ("distinct_2", "distinct-2", 3),
        ("distinct_3", "distinct-3", 3),
        ("entropy", "entropy/token", 3),
        ("length_ratio", "length/teacher's", 3),
        ("cut", "cut", 3),
    ],
    "Discriminator on held-out pairs, and cost": [
        ("d_accuracy", "D accuracy", 3),
        ("d_auc", "D AUC", 3),
        ("d_margin", "D margin", 2),
        ("updates", "updates", 0),
        ("sampled_tokens", "sampled tokens", 0),
        ("seconds", "seconds", 0),
        ("preparation_seconds", "and to prepare", 0),
    ],
}
COMPARED = (
    "reverse_kl_response",
    "reverse_kl_token",
    "forward_kl_response",
    "nll",
    "two_sample",
    "coverage",
    "distinct_2",
    "entropy",
)
ALONG = (("reverse_kl_response", 2), ("coverage", 3), ("d_auc", 3))


def last_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of each arm and seed after most updates, in their order."""
    last: dict[tuple[str, Any], Row] = {}
    for row in rows:
        key = row["arm"], row["seed"]
        if key not in last or row["updates"] >= last[key]["updates"]:
            last[key] = row
    return list(last.values())


def by_seed(rows: Sequence[Row], arm: str, figure: str) -> dict[int, float]:
    """A figure of an arm by seed, where it was measured."""
    return {row["seed"]: row[figure] for row in rows if row["arm"] == arm and _number(row.get(figure))}


def cell(values: Sequence[float], digits: int) -> str:
    """The mean, with the range if there are several values: 1.83 (1.79–1.90); – without values."""
    if not values:
        return "–"
    text = f"{statistics.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def differences(rows: Sequence[Row]) -> list[Row]:
    """Each arm minus its baseline after most updates, for every figure that both have.

    Returns:
      Rows of `arm`, `baseline`, `figure`, `mean`, `low`, `high`, `seeds`; the interval is None with one seed.
    """
    last, found = last_rows(rows), []
    baselines = {row["arm"]: row["baseline"] for row in last if row.get("baseline")}
    for arm, baseline in baselines.items():
        for figure in COMPARED:
            own, other = by_seed(last, arm, figure), by_seed(last, baseline, figure)
            if own.keys() & other.keys():
                gap = {k: None if v != v else v for k, v in paired(own, other)._asdict().items()}
                found.append({"arm": arm, "baseline": baseline, "figure": figure, **gap})
    return found


def text(rows: Sequence[Row]) -> str:
    """All tables."""
    last, parts = last_rows(rows), []
    for title, columns in BLOCKS.items():
        parts.append(_block(title, last, columns))
    parts += [_along(rows, figure, digits) for figure, digits in ALONG]
    parts += [_curve(last), _differences(rows)]
    return "\n\n".join(filter(None, parts))


def _block(title: str, rows: Sequence[Row], columns: Sequence[tuple[str, str, int]]) -> str:
    """One table; figures that nothing has are left out."""
    shown = [column for column in columns if any(_number(row.get(column[0])) for row in rows)]
    if not shown:
        return ""
    lines = []
    for arm in _arms(rows):
        cells = [cell(list(by_seed(rows, arm, figure).values()), digits) for figure, _, digits in shown]
        lines.append([arm, *cells])
    return f"{title}\n" + report.table(["arm", *(heading for _, heading, _ in shown)], lines)


def _along(rows: Sequence[Row], figure: str, digits: int) -> str:
    """A figure by the generator's updates."""
    points = sorted({row["updates"] for row in rows if _number(row.get(figure)) and row["seed"] is not None})
    if len(points) < 2:
        return ""
    lines = []
    for arm in _arms(rows):
        found = [by_seed([row for row in rows if row["updates"] == at], arm, figure) for at in points]
        if any(found) and arm in {row["arm"] for row in rows if row["seed"] is not None}:
            lines.append([arm, *(cell(list(values.values()), digits) for values in found)])
    return f"{figure} by updates\n" + report.table(["arm", *map(str, points)], lines)


def _curve(rows: Sequence[Row]) -> str:
    """Coverage and distinct-2 at each temperature."""
    with_curve = [row for row in rows if row.get("curve") and row["curve"][0][1] is not None]
    if not with_curve:
        return ""
    temperatures = [t for t, *_ in with_curve[0]["curve"]]
    lines = []
    for arm in _arms(with_curve):
        curves = [row["curve"] for row in with_curve if row["arm"] == arm]
        means = [[statistics.mean(curve[i][j] for curve in curves) for j in (1, 2)] for i in range(len(temperatures))]
        lines.append([arm, *(f"{covered:.3f} / {distinct:.3f}" for covered, distinct in means)])
    title = "Coverage / distinct-2 by temperature: a student that is only sharper moves along its curve"
    return f"{title}\n" + report.table(["arm", *(f"{t:g}" for t in temperatures)], lines)


def _differences(rows: Sequence[Row]) -> str:
    lines = []
    for gap in differences(rows):
        interval = "–" if gap["low"] is None else f"{gap['low']:+.3f} to {gap['high']:+.3f}"
        pair = f"{gap['arm']} - {gap['baseline']}"
        lines.append([pair, gap["figure"], f"{gap['mean']:+.3f}", interval, str(gap["seeds"])])
    if not lines:
        return ""
    title = "Differences after the last update, paired by seed, with 95 % intervals (Student's t over seeds)"
    return f"{title}\n" + report.table(["arm - baseline", "figure", "mean", "interval", "seeds"], lines)


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def shown(row: Mapping[str, Any]) -> str:
    """One line of progress about a row."""
    figures = [f"{name} {row[name]:.3f}" for name, _ in ALONG if _number(row.get(name))]
    return f"{row['arm']}, seed {row['seed']}, {row['updates']} updates: " + ", ".join(figures)
