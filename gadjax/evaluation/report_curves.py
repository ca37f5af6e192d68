"""The report's curves: what a run's `metrics.jsonl` holds, by stage."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gadjax.evaluation import svg
from gadjax.metrics import HELDOUT, stage_title
from gadjax.trainer.watchdogs import BEGINS

_BEFORE = "before"  # the stage of figures measured before the first step


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart: figures of the steps and, as points, a figure on held-out prompts."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...] = ()  # figure, its name where there are several
    heldout: str | None = None
    stages: tuple[str, ...] = ()  # that it is of; all where empty
    reference: float | None = None
    zero: bool = False  # the y axis reaches to 0


_CE = ("seqkd", "warmup")
GROUPS: tuple[tuple[str, str, tuple[Panel, ...]], ...] = (
    (
        "Held-out prompts",
        "measured between the steps, against the teacher's answers",
        (
            Panel("Negative log-likelihood", "nats a token", heldout="nll"),
            Panel("Two-sample accuracy", "0.5: cannot be told apart", heldout="two_sample", reference=0.5),
            Panel("ROUGE-L", "0 to 1", heldout="rouge_l", zero=True),
            Panel("n-gram F1", "mean of n = 1 to 5", heldout="ngram_f1_mean", zero=True),
        ),
    ),
    (
        "Student",
        "",
        (
            Panel("Loss: cross entropy", "nats a token", (("generator/loss", ""),), stages=_CE),
            Panel("Loss: policy gradient", "", (("generator/loss", ""),), stages=("gad",)),
            Panel("Reward", "discriminator's score, mean", (("reward/mean", ""),)),
            Panel("Spread of rewards", "standard deviation", (("reward/std", ""),), zero=True),
            Panel("KL to the reference", "nats a token", (("generator/kl", ""),), zero=True),
            Panel("Entropy", "nats a token", (("generator/entropy", ""),), zero=True),
            Panel("Gradient norm", "", (("generator/grad_norm", ""),), zero=True),
            Panel("Clipped tokens", "share", (("generator/clipped", ""),), zero=True),
        ),
    ),
    (
        "Discriminator",
        "",
        (
            Panel(
                "Accuracy",
                "on fresh samples, before its update",
                (("discriminator/accuracy", ""),),
                "discriminator_accuracy",
                reference=0.5,
            ),
            Panel(
                "Margin", "teacher's score less the student's", (("discriminator/margin", ""),), "discriminator_margin"
            ),
            Panel("Loss", "", (("discriminator/loss", ""),), zero=True),
            Panel("Gradient norm", "", (("discriminator/grad_norm", ""),), zero=True),
        ),
    ),
    (
        "Answers",
        "",
        (
            Panel("Length, mean", "tokens", (("response/length_mean", ""),), "length_mean", zero=True),
            Panel("Length, 95th percentile", "tokens", (("response/length_p95", ""),), "length_p95", zero=True),
            Panel("Cut at the limit", "share of answers", (("response/truncated", ""),), "truncated", zero=True),
        ),
    ),
    (
        "Speed",
        "",
        (
            Panel("Sampling", "tokens a second", (("speed/sampled_tokens_per_second", ""),), zero=True),
            Panel("Training", "tokens a second", (("speed/trained_tokens_per_second", ""),), zero=True),
            Panel("Model arithmetic", "TFLOP/s a device", (("speed/model_tflops_per_device", ""),), zero=True),
            Panel(
                "Time of a step",
                "s",
                (
                    ("seconds/rollout", "sampling"),
                    ("seconds/discriminator", "discriminator"),
                    ("seconds/generator", "student"),
                ),
                zero=True,
            ),
            Panel("Padding", "share of the rows' places", (("padding", ""),), zero=True),
        ),
    ),
)
_OTHER = "Other figures"


def run_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Curves of a run.

    Args:
      records: as `gadjax.metrics.read_metrics` returns.

    Returns:
      `stages` (name and steps, as text), `groups` of `title`, `note` and `panels`, `warnings` of the watchdogs, and
      `nonfinite`: how many figures were left out because they were not finite. A panel has `title`, `unit`, `svg`,
      and `legend` of names and colours where it has several lines.
    """
    warnings = _warnings([record for record in records if record["kind"] == "warning"])
    records = [record for record in records if record["kind"] != "warning"]
    records = [_with_mean(record) for record in records]
    stages = _stages(records)
    known = {name for _, _, panels in GROUPS for panel in panels for name in _figures_of(panel)}
    known |= {f"{HELDOUT}ngram_f1_{n}" for n in range(1, 6)} | {f"{HELDOUT}two_sample_{end}" for end in ("low", "high")}
    names = sorted({name for record in records for name in record} - known - {"kind", "stage", "step"})
    other = tuple(
        Panel(name, "", heldout=name.removeprefix(HELDOUT))
        if name.startswith(HELDOUT)
        else Panel(name, "", ((name, ""),))
        for name in names
    )
    groups = []
    for title, note, panels in (*GROUPS, (_OTHER, "", other)):
        drawn = [figure for panel in panels if (figure := _draw(panel, records, stages))]
        if drawn:
            groups.append({"title": title, "note": note, "panels": drawn, "folded": title == _OTHER})
    bad = sum(isinstance(v, float) and not math.isfinite(v) for record in records for v in record.values())
    spans = [(stage_title(name), f"{first + 1:,} to {last:,}") for name, (first, last) in stages.items()]
    return {"stages": spans, "groups": groups, "warnings": warnings, "nonfinite": bad}


def _warnings(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """`stage`, `steps`, `watchdog`, `seen` and `advice` of each warning, in the order in which they began.

    One without an end stood when its stage, or the run, ended.
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
    wanted = [stage for stage in stages if not panel.stages or stage in panel.stages]
    lines = []
    for n, (figure, name) in enumerate(panel.lines):
        steps = {stage: list(_steps(records, stage, figure)) for stage in wanted}
        steps = {stage: found for stage, found in steps.items() if found}
        if steps:
            lines.append(svg.Line(name, steps, f"c{n}"))
    points = {} if panel.heldout is None else _points(records, HELDOUT + panel.heldout)
    there = {stage for line in lines for stage in line.stages} | set(points)
    places = [n for n, stage in enumerate(stages) if stage in there and stage in wanted]
    # Without gaps, so that a tick is the end of one stage and the start of the next.
    shown = dict(list(stages.items())[places[0] : places[-1] + 1]) if places else {}
    if not shown and set(points) <= {_BEFORE} and not lines:
        return None
    if next(iter(shown), None) != next(iter(stages), None):
        points.pop(_BEFORE, None)  # a point at the start of another stage would be taken for that stage's
    label = f"{panel.title} by step" + (f", {panel.unit}" if panel.unit else "")
    titles = {stage: stage_title(stage) for stage in (_BEFORE, *stages)}
    drawing = svg.curves(
        label, lines, points, shown, titles, reference=panel.reference, include=[0.0] if panel.zero else []
    )
    legend = [(line.name, line.colour) for line in lines] if len(panel.lines) > 1 else []
    return {"title": panel.title, "unit": panel.unit, "svg": drawing, "legend": legend}


def _steps(records: Iterable[Mapping[str, Any]], stage: str, figure: str) -> Iterable[tuple[int, float]]:
    for record in records:
        value = record.get(figure)
        if record["kind"] == "train" and record["stage"] == stage and _drawable(value):
            yield record["step"], float(value)


def _points(records: Iterable[Mapping[str, Any]], figure: str) -> dict[str, list[svg.Point]]:
    points: dict[str, list[svg.Point]] = {}
    for record in records:
        if record["kind"] == "heldout" and _drawable(record.get(figure)):
            ends = [record.get(f"{figure}_{end}") for end in ("low", "high")]
            low, high = ends if all(map(_drawable, ends)) else (None, None)
            points.setdefault(record["stage"], []).append(svg.Point(record["step"], record[figure], low, high))
    return points


def _stages(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """The step before each stage's first and its last, in order."""
    train = [(record["stage"], record["step"]) for record in records if record["kind"] == "train"]
    spans: dict[str, tuple[int, int]] = {}
    for stage, group in itertools.groupby(train, key=lambda pair: pair[0]):
        steps = [step for _, step in group]
        first, _ = spans.get(stage, (steps[0] - 1, 0))
        spans[stage] = (first, steps[-1])
    return spans


def _with_mean(record: Mapping[str, Any]) -> dict[str, Any]:
    parts = [record.get(f"{HELDOUT}ngram_f1_{n}") for n in range(1, 6)]
    mean = {} if None in parts else {f"{HELDOUT}ngram_f1_mean": sum(parts) / len(parts)}
    return {**record, **mean}


def _figures_of(panel: Panel) -> list[str]:
    return [figure for figure, _ in panel.lines] + ([] if panel.heldout is None else [HELDOUT + panel.heldout])


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
