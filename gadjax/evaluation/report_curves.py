"""The report's curves of a run: figures on held-out prompts as training went on, and the watchdogs' warnings.

All other figures of a run are TensorBoard's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gadjax.evaluation import svg
from gadjax.evaluation.svg import finite
from gadjax.metrics import BEGINS, HELDOUT
from gadjax.stage_table import stage_title

_BEFORE = "before"  # the stage of held-out figures that were measured before the first step


class Panel(NamedTuple):
    """One chart of a held-out figure."""

    title: str
    unit: str
    figure: str
    reference: float | None = None  # value of a dashed line
    zero: bool = False  # the y axis reaches to 0


PANELS = (
    Panel("Negative log-likelihood", "of the teacher's answers, nats a token", "nll"),
    Panel("Two-sample accuracy", "0.5: cannot be told apart", "two_sample", 0.5),
    Panel("Discriminator's accuracy", "teacher's answer above the student's", "discriminator_accuracy", 0.5),
    Panel("ROUGE-L", "0 to 1", "rouge_l", zero=True),
    Panel("Length of answers", "tokens, mean", "length_mean", zero=True),
    Panel("Cut at the limit", "share of answers", "truncated", zero=True),
)


def run_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Curves of a run.

    Args:
      records: as `gadjax.metrics.read_metrics` returns them.

    Returns:
      `stages` (name and steps, as text), `panels` of `title`, `unit` and `svg`, `warnings` of the watchdogs, and
      `nonfinite`, the number of the panels' figures that were not finite.
    """
    warnings = _warnings(record for record in records if record["kind"] == "warning")
    stages = _stages(records)
    panels = [drawn for panel in PANELS if (drawn := _draw(panel, records, stages))]
    spans = [(stage_title(name), f"{first + 1:,} to {last:,}") for name, (first, last) in stages.items()]
    measured = [record.get(HELDOUT + panel.figure) for record in records for panel in PANELS]
    nonfinite = sum(value is not None and finite(value) is None for value in measured)
    return {"stages": spans, "panels": panels, "warnings": warnings, "nonfinite": nonfinite}


def _warnings(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """`stage`, `steps`, `watchdog`, `seen` and `advice` of each warning, in the order in which they began.

    A warning without an end still held when its stage, or the run, ended.
    """
    warnings: list[dict[str, str]] = []
    standing: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        key = record["stage"], record["watchdog"]
        if record["state"] == BEGINS:
            shown = {name: record[name] for name in ("watchdog", "seen", "advice")}
            standing[key] = {"stage": stage_title(record["stage"]), "steps": f"from {record['since']:,} on", **shown}
            warnings.append(standing[key])
        else:
            standing[key]["steps"] = f"{record['since']:,} to {record['step']:,}"
    return warnings


def _draw(
    panel: Panel, records: Sequence[Mapping[str, Any]], stages: Mapping[str, tuple[int, int]]
) -> dict[str, Any] | None:
    """The panel's title, unit and chart; None if its figure was not measured after a step."""
    points = _points(records, HELDOUT + panel.figure)
    if set(points) <= {_BEFORE}:
        return None
    places = [n for n, stage in enumerate(stages) if stage in points]
    # The stages from the first to the last with figures, without gaps: a tick ends one stage and starts the next.
    shown = dict(list(stages.items())[places[0] : places[-1] + 1]) if places else {}
    if next(iter(shown), None) != next(iter(stages), None):
        points.pop(_BEFORE, None)  # a point at the start of a later stage would be taken for that stage's
    titles = {stage: stage_title(stage) for stage in (_BEFORE, *stages)}
    label, include = f"{panel.title} by step, {panel.unit}", [0.0] if panel.zero else []
    drawing = svg.curve(label, points, shown, titles, reference=panel.reference, include=include)
    return {"title": panel.title, "unit": panel.unit, "svg": drawing}


def _points(records: Iterable[Mapping[str, Any]], figure: str) -> dict[str, list[svg.Point]]:
    points: dict[str, list[svg.Point]] = {}
    for record in records:
        if record["kind"] == "heldout":
            value, low, high = (finite(record.get(figure + end)) for end in ("", "_low", "_high"))
            if value is not None:
                points.setdefault(record["stage"], []).append(svg.Point(record["step"], value, low, high))
    return points


def _stages(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """By stage, in order: the step before its first, and its last."""
    train = [(record["stage"], record["step"]) for record in records if record["kind"] == "train"]
    spans: dict[str, tuple[int, int]] = {}
    for stage, group in itertools.groupby(train, key=lambda pair: pair[0]):
        steps = [step for _, step in group]
        first, _ = spans.get(stage, (steps[0] - 1, 0))
        spans[stage] = (first, steps[-1])
    return spans
