"""The figure of a suite: divergence along the runs, and quality against diversity."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.table import Row, last_rows


def draw(rows: Sequence[Row], out: pathlib.Path, title: str) -> list[pathlib.Path]:
    """Writes OUT.svg and OUT.png, and returns their paths.

    Panels: reverse KL a response by the generator's updates (or, without a known teacher, the negative
    log-likelihood), with bars for the range over seeds; coverage against distinct-2, a point for each temperature;
    reverse against forward KL. A panel without figures is left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    distance = "reverse_kl_response" if any(row.get("reverse_kl_response") is not None for row in rows) else "nll"
    panels = [lambda axes: _along(axes, rows, distance)]
    if any(row.get("curve") and row["curve"][0][1] is not None for row in rows):
        panels.append(lambda axes: _curve(axes, last_rows(rows)))
    if any(row.get("forward_kl_response") is not None for row in rows):
        panels.append(lambda axes: _plane(axes, last_rows(rows)))
    # Identifiers in the SVG are hashed with this: the same figures give the same file.
    with pyplot.rc_context({"svg.hashsalt": "gadjax", "font.size": 8, "svg.fonttype": "none"}):
        figure, all_axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), squeeze=False)
        for panel, axes in zip(panels, all_axes[0], strict=True):
            panel(axes)
        handles = {
            label: handle
            for axes in all_axes[0]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.suptitle(title)
        figure.tight_layout(rect=(0, 0.02 + 0.045 * (-(-len(handles) // 5)), 1, 1))
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False)
        paths = [out.with_suffix(suffix) for suffix in (".svg", ".png")]
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)
    return paths


def _along(axes: Any, rows: Sequence[Row], name: str) -> None:
    for number, arm in enumerate(_arms(rows)):
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["arm"] == arm and row["seed"] is not None and row.get(name) is not None:
                points.setdefault(row["updates"], []).append(row[name])
        if not points:
            continue
        x = sorted(points)
        mean = [statistics.mean(points[at]) for at in x]
        spread = [[m - min(points[at]) for at, m in zip(x, mean, strict=True)]]
        spread += [[max(points[at]) - m for at, m in zip(x, mean, strict=True)]]
        axes.errorbar(x, mean, spread, label=arm, marker="o", markersize=3, capsize=2, **_style(number))
    axes.set_xlabel("updates of the generator")
    axes.set_ylabel({"nll": "negative log-likelihood, nats a token"}.get(name, "reverse KL, nats a response"))


def _curve(axes: Any, rows: Sequence[Row]) -> None:
    for number, arm in enumerate(_arms(rows)):
        curves = [row["curve"] for row in rows if row["arm"] == arm and row.get("curve")]
        if curves:
            covered, distinct = (
                [statistics.mean(c[i][j] for c in curves) for i in range(len(curves[0]))] for j in (1, 2)
            )
            axes.plot(distinct, covered, label=arm, marker="o", markersize=3, **_style(number))
    axes.set_xlabel("distinct-2")
    axes.set_ylabel("coverage, by temperature")


def _plane(axes: Any, rows: Sequence[Row]) -> None:
    for number, arm in enumerate(_arms(rows)):
        found = [row for row in rows if row["arm"] == arm and row.get("forward_kl_response") is not None]
        if found and found[0]["seed"] is not None:
            both = [[row[f"{way}_kl_response"] for row in found] for way in ("forward", "reverse")]
            axes.plot(*both, "o", label=arm, markersize=4, color=_style(number)["color"])
    axes.set_xlabel("forward KL, nats a response")
    axes.set_ylabel("reverse KL, nats a response")


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _style(number: int) -> dict[str, str]:
    """A colour and a kind of line that no other of the first thirty arms has."""
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
