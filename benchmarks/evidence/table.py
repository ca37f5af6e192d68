"""The tables of a suite, for people: means over seeds with their ranges, and differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.evidence.quality import paired
from benchmarks.harness import report

Row = dict[str, Any]  # `arm`, `seed` (None for the teacher), `updates`, and figures; `rivals` names other arms

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
        ("d_token_correlation", "token rewards' r", 3),
        ("d_end_bias", "end bias", 2),
        ("updates", "updates", 0),
        ("sampled_tokens", "sampled tokens", 0),
        ("seconds", "seconds", 0),
        ("preparation_seconds", "and to prepare", 0),
    ],
}
# What arms are compared by, and whether the difference is told in per cent too.
COMPARED = {
    "reverse_kl_token": True,
    "forward_kl_response": True,
    "length_ratio": True,
    "distinct_2": True,
    "coverage": True,
    "reverse_kl_response": False,
    "nll": False,
    "two_sample": False,
    "entropy": False,
}
BEST_OF = [
    ("coverage", "coverage", 3),
    ("distinct_2", "distinct-2", 3),
    ("length_ratio", "length/teacher's", 3),
    ("two_sample", "two-sample", 3),
    ("teacher_nats", "teacher's log p/token", 3),
]
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
    """Each arm minus each of its rivals, at every point that both were measured at, for every figure that both have.

    A point at which nothing differs is left out: both are still the student that they start from.

    Returns:
      Rows of `arm`, `rival`, `updates`, `figure`, `mean`, `low`, `high`, `seeds` and `percent`, the mean in per cent of
      the rival's. The interval is None with one seed, and `percent` where it says nothing.
    """
    rivals = {row["arm"]: row["rivals"] for row in rows if row.get("rivals")}
    found = []
    for arm, others in rivals.items():
        for updates in sorted({row["updates"] for row in rows if row["arm"] == arm}):
            here = [row for row in rows if row["updates"] == updates]
            for rival in others:
                gaps = _gaps(here, arm, rival)
                if any(gap["mean"] or gap["low"] or gap["high"] for gap in gaps):
                    found += [{"arm": arm, "rival": rival, "updates": updates, **gap} for gap in gaps]
    return found


def _gaps(rows: Sequence[Row], arm: str, rival: str) -> list[Row]:
    """The differences of two arms at one point, by figure."""
    found = []
    for figure, in_percent in COMPARED.items():
        own, other = by_seed(rows, arm, figure), by_seed(rows, rival, figure)
        if not own.keys() & other.keys():
            continue
        gap = {name: None if value != value else value for name, value in paired(own, other)._asdict().items()}
        against = statistics.mean(other[seed] for seed in own.keys() & other.keys())
        percent = 100 * gap["mean"] / against if in_percent and against else None
        found.append({"figure": figure, **gap, "percent": percent})
    return found


def text(rows: Sequence[Row]) -> str:
    """All tables."""
    last, parts = last_rows(rows), []
    for title, columns in BLOCKS.items():
        parts.append(_block(title, last, columns))
    parts += [_along(rows, figure, digits) for figure, digits in ALONG]
    parts += [_curve(last), _best_of(last), _differences(rows)]
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


def _best_of(rows: Sequence[Row]) -> str:
    """What an arm's discriminator chooses among draws of the arm's start and of its end, beside single draws."""
    measured = [row for row in rows if row.get("best_of")]
    if not measured:
        return ""
    samples = measured[0]["best_of"]["samples"]
    ways = {"plain": "a draw", "best": f"best of {samples}"}
    flat = [
        {"arm": f"{row['arm']}, {end}, {text}", "seed": row["seed"], **row["best_of"][end][way]}
        for arm in _arms(measured)
        for end in ("start", "end")
        for way, text in ways.items()
        for row in measured
        if row["arm"] == arm
    ]
    return _block(
        f"The best of {samples} draws by the arm's last discriminator, at both ends of the arm", flat, BEST_OF
    )


def _differences(rows: Sequence[Row]) -> str:
    """A table for each arm and point: the differences from each of its rivals."""
    points: dict[tuple[str, int], list[Row]] = {}
    for gap in differences(rows):
        points.setdefault((gap["arm"], gap["updates"]), []).append(gap)
    parts = []
    for (arm, updates), gaps in points.items():
        rivals = list(dict.fromkeys(gap["rival"] for gap in gaps))
        by_name = {(gap["figure"], gap["rival"]): gap for gap in gaps}
        lines = [
            [figure, *(text for rival in rivals for text in _difference(by_name.get((figure, rival))))]
            for figure in dict.fromkeys(gap["figure"] for gap in gaps)
        ]
        heads = [head for rival in rivals for head in (f"minus {rival}", f"{_seeds(gaps, rival)}, in %")]
        parts.append(report.table([f"{arm}, {updates} updates", *heads], lines))
    title = "Differences, paired by seed, with 95 % intervals (Student's t over seeds)"
    return "\n\n".join([title, *parts]) if parts else ""


def _seeds(gaps: Sequence[Row], rival: str) -> str:
    """How many seeds an arm and its rival share, in words."""
    count = max(gap["seeds"] for gap in gaps if gap["rival"] == rival)
    return f"{count} seed{'s' * (count > 1)}"


def _difference(gap: Row | None) -> tuple[str, str]:
    """A difference with its interval, and in per cent."""
    if gap is None:
        return "–", "–"
    interval = "" if gap["low"] is None else f" ({gap['low']:+.3f} to {gap['high']:+.3f})"
    percent = "–" if gap["percent"] is None else f"{gap['percent']:+.1f}"
    return f"{gap['mean']:+.3f}{interval}", percent


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def shown(row: Mapping[str, Any]) -> str:
    """One line of progress about a row."""
    figures = [f"{name} {row[name]:.3f}" for name, _ in ALONG if _number(row.get(name))]
    return f"{row['arm']}, seed {row['seed']}, {row['updates']} updates: " + ", ".join(figures)
