"""Small charts as SVG: curves over a run's stages, bars with intervals, histograms, shares.

Pure text made of elements, so that all of it is escaped; colours and fonts come from the page's style sheet through
class names ("c0" to "c5" for models, "quiet" for the teacher). A chart is an image with one label to a screen reader;
pointing at a part of it shows that part's figures.
"""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

WIDTH = 300.0  # of every chart, in its own units: pages scale it
_LEFT, _RIGHT = 44.0, 12.0
_STAGE_WIDTH = 52.0  # at least, so that a short stage is seen and its name fits
_BUCKET = 3.0  # width over which neighbouring steps are averaged
COLOURS = 6


@dataclasses.dataclass(frozen=True)
class Bar:
    """A model's figure, with its 95 % interval where there is one."""

    name: str
    value: float | None  # None: not measured
    low: float | None = None
    high: float | None = None
    colour: str = "c0"


@dataclasses.dataclass(frozen=True)
class Point:
    """A figure after a step, with its 95 % interval where there is one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A figure of each step."""

    name: str
    stages: Mapping[str, Sequence[tuple[int, float]]]  # by stage: steps and values, in order
    colour: str = "c0"


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range and the places that are labelled in it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int  # behind the point

    def within(self, low: float, high: float) -> Axis:
        """The axis with these ends, and those of its ticks between them."""
        return Axis(low, high, tuple(tick for tick in self.ticks if low <= tick <= high), self.digits)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1; values outside are moved to the nearer end."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def label(self, value: float) -> str:
        """A tick's text."""
        if max(abs(self.low), abs(self.high)) < 1e-3:
            return f"{value:.3g}".replace("-", "−")
        if self.high - self.low >= 1e6:
            return f"{value / 1e6:,g}M".replace("-", "−")
        return number(value, self.digits)


def number(value: float, digits: int | None = None) -> str:
    """A figure as people read it; `digits` behind the point, by default enough for three that count."""
    if digits is None:
        size = abs(value)
        if size and (size < 1e-3 or size >= 1e7):
            return f"{value:.2e}".replace("-", "−")
        digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}"
    return "0" + text[2:] if text.startswith("-0") and not float(text) else text.replace("-", "−")


def axis(values: Sequence[float], *, include: Sequence[float] = (), count: int = 4) -> Axis:
    """Round ticks around all finite values and those to include."""
    known = [value for value in (*values, *include) if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if max(abs(low), abs(high)) < 1e-12:  # no scale of its own
        low, high = 0.0, 1.0
    elif high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.1 * abs(low), high + 0.1 * abs(high)
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, max(0, -math.floor(math.log10(step) + 1e-9) + (step_digit(step) == 2.5)))


def step_digit(step: float) -> float:
    """The first digits of a step between ticks: 1, 2, 2.5 or 5."""
    return round(step / 10 ** math.floor(math.log10(step) + 1e-9), 1)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(digit for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * (1 - 1e-9))


def curves(
    label: str,
    lines: Sequence[Line],
    points: Mapping[str, Sequence[Point]],
    stages: Mapping[str, tuple[int, int]],
    titles: Mapping[str, str],
    *,
    reference: float | None = None,
    include: Sequence[float] = (),
) -> str:
    """Figures over the steps of a run.

    Each stage has steps at its own scale, so that short stages are seen. A line is the mean of neighbouring
    steps, the band behind it their range.

    Args:
      label: what a screen reader says.
      lines: of the training steps.
      points: held-out figures by stage; those of no stage in `stages` lie at the start.
      stages: the first step (that before the stage) and the last of each, in order.
      titles: of the stages.
      reference: value of a dashed line.
      include: values that the y axis reaches to.
    """
    height, top, bottom = 190.0, 22.0, 168.0
    svg = _chart(height, label)
    left = {stage: place for stage, place in zip(stages, _places(stages), strict=True)}

    def across(stage: str, step: float) -> float:
        if stage not in stages:
            return _LEFT
        (start, end), (x, width) = stages[stage], left[stage]
        return x + width * (step - start) / max(1, end - start)

    groups = [(line, stage, _buckets(steps, left[stage][1])) for line in lines for stage, steps in line.stages.items()]
    held = [(stage, point) for stage in points for point in points[stage]]
    heights = [bucket.mean for _, _, buckets in groups for bucket in buckets]
    heights += [value for _, p in held for value in (p.value, p.low, p.high) if value is not None]
    y = axis(heights, include=[*include, *([] if reference is None else [reference])])

    def up(value: float) -> float:
        return bottom - (bottom - top) * y.share(value)

    for n, (stage, (x, width)) in enumerate(left.items()):
        _add(svg, "rect", cls="band" if n % 2 else "ground", x=x, y=top, width=width, height=bottom - top)
        _text(svg, x + width / 2, top - 7, titles.get(stage, stage), "stage", "middle")
    for tick in y.ticks:
        _add(svg, "line", cls="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=up(tick), y2=up(tick))
        _text(svg, _LEFT - 6, up(tick) + 3.5, y.label(tick), "tick", "end")
    if reference is not None:
        _add(svg, "line", cls="reference", x1=_LEFT, x2=WIDTH - _RIGHT, y1=up(reference), y2=up(reference))
    _text(svg, _LEFT - 20, bottom + 15, "step", "tick", "end")
    for step, x in [(start, left[stage][0]) for stage, (start, _) in stages.items()] + [
        (end, sum(left[stage])) for stage, (_, end) in list(stages.items())[-1:]
    ]:
        _add(svg, "line", cls="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4)
        _text(svg, x, bottom + 15, f"{step:,}", "tick", "middle")
    for line, stage, buckets in groups:
        places = [(across(stage, bucket.step), bucket) for bucket in buckets]
        edge = [(x, up(b.low)) for x, b in places] + [(x, up(b.high)) for x, b in reversed(places)]
        _add(svg, "path", cls=f"range {line.colour}", d=_path(edge) + "Z")
    for line, stage, buckets in groups:
        _add(svg, "path", cls=f"line {line.colour}", d=_path((across(stage, b.step), up(b.mean)) for b in buckets))
    if held:
        _add(svg, "path", cls="line held", d=_path((across(stage, p.step), up(p.value)) for stage, p in held))
    for _, stage, buckets in groups:
        _hits(svg, [(across(stage, b.step), b) for b in buckets], top, bottom)
    for stage, p in held:
        mark = _add(svg, "g", cls="held")
        x = across(stage, p.step)
        if p.low is not None and p.high is not None:
            _add(mark, "line", cls="whisker", x1=x, x2=x, y1=up(p.low), y2=up(p.high))
        _add(mark, "circle", cx=x, cy=up(p.value), r=3.2)
        _title(mark, f"held-out, {titles.get(stage, stage)}, step {p.step:,}: {_interval(p.value, p.low, p.high)}")
    return _svg(svg)


def bars(
    label: str, rows: Sequence[Bar], *, base: float, scale: Axis, note: str = "", digits: int | None = None
) -> str:
    """A bar a row from `base`, named above it, with its interval; `note` names the dashed line at the base."""
    row, foot = 35.0, 22.0 + (13.0 if note else 0.0)
    height = row * len(rows) + foot
    x0, x1 = 8.0, WIDTH - 14.0
    svg = _chart(height, label)

    def across(value: float) -> float:
        return x0 + (x1 - x0) * scale.share(value)

    bottom = row * len(rows)
    for tick in scale.ticks:
        _add(svg, "line", cls="grid", x1=across(tick), x2=across(tick), y1=2, y2=bottom)
        _text(svg, across(tick), bottom + 14, scale.label(tick), "tick", "middle")
    if note:
        _add(svg, "line", cls="reference", x1=across(base), x2=across(base), y1=2, y2=bottom + 3)
    for n, bar in enumerate(rows):
        y = row * n
        _text(svg, x0 + 4, y + 13, _shorten(bar.name, 22), "name", "start", halo=True)
        if bar.value is None:
            _text(svg, x1, y + 13, "not measured", "tick", "end", halo=True)
            continue
        words = _interval(bar.value, bar.low, bar.high, digits)
        _text(svg, x1, y + 13, words, "value", "end", halo=True)
        group = _add(svg, "g", cls=bar.colour)
        start, end = sorted((across(base), across(bar.value)))
        _add(group, "rect", cls="bar", x=start, y=y + 19, width=max(end - start, 1), height=11, rx=1.5)
        if bar.low is not None and bar.high is not None:
            ends, middle = [across(bar.low), across(bar.high)], y + 24.5
            d = f"M{ends[0]:.1f} {middle}H{ends[1]:.1f}"
            d += "".join(f"M{x:.1f} {middle - 4}V{middle + 4}" for x in ends)
            for name in ("whisker halo", "whisker"):
                _add(group, "path", cls=name, d=d)
        _title(group, f"{bar.name}: {words}")
    if not note:
        _add(svg, "line", cls="axis", x1=across(base), x2=across(base), y1=2, y2=bottom + 3)
    else:
        side = scale.share(base)
        anchor = "start" if side < 0.3 else "end" if side > 0.7 else "middle"
        _text(svg, across(base), bottom + 27, note, "tick", anchor)
    return _svg(svg)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Lengths of a model's answers, in tokens or words: counts between edges."""

    edges: Sequence[float]  # one more than counts, rising
    counts: Sequence[float]

    def shares(self, width: float) -> list[float]:
        """Percent of the answers in each bin, per `width` of length."""
        total = sum(self.counts) or 1
        spans = zip(self.edges, self.edges[1:], self.counts, strict=False)
        return [100 * count / total * width / (right - left) for left, right, count in spans]


def histogram(
    label: str, own: Histogram, teacher: Histogram | None, *, colour: str, top_share: float, unit: str
) -> str:
    """A model's lengths, filled, with the teacher's as an outline.

    Args:
      label: what a screen reader says.
      own: the model's.
      teacher: its, or None.
      colour: class of the model.
      top_share: percent that the y axis reaches, so that panels side by side compare.
      unit: of lengths, "tokens" or "words".
    """
    height, top, bottom = 156.0, 10.0, 122.0
    svg = _chart(height, label)
    both = [part for part in (own, teacher) if part]
    width = own.edges[1] - own.edges[0]
    least, most = min(0, own.edges[0]), max(part.edges[-1] for part in both)
    x = axis([least, most], count=5).within(least, most)
    y = axis([top_share], include=[0.0], count=3)

    def at(length: float, share: float) -> tuple[float, float]:
        return _LEFT + (WIDTH - _RIGHT - _LEFT) * x.share(length), bottom - (bottom - top) * y.share(share)

    for tick in y.ticks:
        _add(svg, "line", cls="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at(0, tick)[1], y2=at(0, tick)[1])
        _text(svg, _LEFT - 6, at(0, tick)[1] + 3.5, f"{y.label(tick)} %", "tick", "end")
    for tick in x.ticks:
        _text(svg, at(tick, 0)[0], bottom + 15, x.label(tick), "tick", "middle")
    _text(svg, (WIDTH + _LEFT - _RIGHT) / 2, bottom + 30, f"{unit} in an answer", "tick", "middle")
    for left, right, share, count in zip(own.edges, own.edges[1:], own.shares(width), own.counts, strict=False):
        (x0, y0), (x1, _) = at(left, share), at(right, share)
        bar = _add(
            svg, "rect", cls=f"bar {colour}", x=x0 + 0.4, y=y0, width=max(x1 - x0 - 0.8, 0.4), height=bottom - y0
        )
        _title(bar, f"{number(left, 0)} to {number(right, 0)} {unit}: {count:,.0f} answers")
    if teacher:
        outline = [at(teacher.edges[0], 0)]
        for left, right, share in zip(teacher.edges, teacher.edges[1:], teacher.shares(width), strict=False):
            outline += [at(left, share), at(right, share)]
        _add(svg, "path", cls="outline", d=_path([*outline, at(teacher.edges[-1], 0)]))
    _add(svg, "line", cls="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=bottom, y2=bottom)
    return _svg(svg)


def shares(label: str, parts: Sequence[tuple[str, int]]) -> str:
    """Counts as parts of one bar; `parts`: class of each and its count."""
    width, height = 200.0, 14.0
    svg = ET.Element(
        "svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label, "class": "shares"}
    )
    total, x = sum(count for _, count in parts) or 1, 0.0
    for cls, count in parts:
        if count:
            span = width * count / total
            _add(svg, "rect", cls=cls, x=x, y=1, width=max(span - 1, 0.5), height=height - 2)
            x += span
    _add(svg, "line", cls="axis", x1=width / 2, x2=width / 2, y1=0, y2=height)
    _title(svg, label)
    return _svg(svg)


@dataclasses.dataclass(frozen=True)
class _Bucket:
    step: float
    first: int
    last: int
    mean: float
    low: float
    high: float


def _buckets(steps: Sequence[tuple[int, float]], width: float) -> list[_Bucket]:
    count = min(len(steps), max(1, int(width / _BUCKET)))
    buckets = []
    for n in range(count):
        part = steps[n * len(steps) // count : (n + 1) * len(steps) // count]
        values = [value for _, value in part]
        middle = sum(step for step, _ in part) / len(part)
        mean = math.fsum(values) / len(values)
        buckets.append(_Bucket(middle, part[0][0], part[-1][0], mean, min(values), max(values)))
    return buckets


def _places(stages: Mapping[str, tuple[int, int]]) -> list[tuple[float, float]]:
    """Left edge and width of each stage: by its steps, but wide enough for its name."""
    whole = WIDTH - _RIGHT - _LEFT
    least = min(_STAGE_WIDTH, whole / max(1, len(stages)))
    lengths = [max(1, end - start) for start, end in stages.values()]
    free = whole - least * len(stages)
    widths = [least + free * length / sum(lengths) for length in lengths]
    return [(_LEFT + sum(widths[:n]), width) for n, width in enumerate(widths)]


def _hits(svg: ET.Element, places: Sequence[tuple[float, _Bucket]], top: float, bottom: float) -> None:
    """Places to point at, which say the figure there."""
    for n, (x, bucket) in enumerate(places):
        left = (x + places[n - 1][0]) / 2 if n else x - 1
        right = (x + places[n + 1][0]) / 2 if n + 1 < len(places) else x + 1
        hit = _add(svg, "rect", cls="hit", x=left, y=top, width=max(right - left, 0.5), height=bottom - top)
        if bucket.first == bucket.last:
            words = f"step {bucket.first:,}: {number(bucket.mean)}"
        else:
            words = f"steps {bucket.first:,} to {bucket.last:,}: mean {number(bucket.mean)}, "
            words += f"from {number(bucket.low)} to {number(bucket.high)}"
        _title(hit, words)


def _interval(value: float, low: float | None, high: float | None, digits: int | None = None) -> str:
    text = number(value, digits)
    if low is None or high is None:
        return text
    return f"{text} ({number(low, digits)} to {number(high, digits)})"


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _path(points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _chart(height: float, label: str) -> ET.Element:
    view = f"0 0 {WIDTH:g} {height:g}"
    return ET.Element("svg", {"viewBox": view, "role": "img", "aria-label": label, "class": "chart"})


def _add(parent: ET.Element, tag: str, *, cls: str = "", **attributes: float | str) -> ET.Element:
    texts = {
        k.replace("_", "-"): f"{v:.1f}".removesuffix(".0") if isinstance(v, float) else str(v)
        for k, v in attributes.items()
    }
    return ET.SubElement(parent, tag, {**({"class": cls} if cls else {}), **texts})


def _text(parent: ET.Element, x: float, y: float, text: str, cls: str, anchor: str, *, halo: bool = False) -> None:
    element = _add(parent, "text", cls=f"{cls} over" if halo else cls, x=x, y=y, text_anchor=anchor)
    element.text = text


def _title(parent: ET.Element, text: str) -> None:
    ET.SubElement(parent, "title").text = text


def _svg(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")
