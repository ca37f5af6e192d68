"""Small charts as SVG text: a curve over a run's stages, bars with intervals, histograms, shares of a bar.

Charts are built as XML elements, so all text in them is escaped. They have no colours or fonts of their own: the page's
style sheet gives both by class name ("c0" to "c5" for models, "quiet" for the teacher), for light and dark pages. A
screen reader reads a chart as one image with a label; pointing at a part shows that part's figures.
"""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gadjax.evaluation.results import Histogram

COLOURS = 6  # classes "c0" to "c5"
WIDTH = 300.0  # of every chart, in units of its own: the page scales it
_LEFT, _RIGHT = 44.0, 12.0  # margins of charts with a y axis
_STAGE_WIDTH = 52.0  # the least width of a stage, so that a short one is seen and its name fits


class Bar(NamedTuple):
    """A model's figure (None: not measured), with its 95 % interval where it has one."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    colour: str = "c0"


class Point(NamedTuple):
    """A figure after a step, with its 95 % interval where it has one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range of values and its ticks, labelled with `digits` decimals."""

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int

    def within(self, low: float, high: float) -> Axis:
        """The axis from `low` to `high`, with the ticks that lie there."""
        return Axis(low, high, tuple(tick for tick in self.ticks if low <= tick <= high), self.digits)

    def share(self, value: float) -> float:
        """The value's position from 0 to 1; a value outside the range is moved to the nearer end."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def label(self, value: float) -> str:
        """A tick's text."""
        if max(abs(self.low), abs(self.high)) < 1e-3:
            return f"{value:.3g}".replace("-", "−")
        if self.high - self.low >= 1e6:
            return f"{value / 1e6:,g}M".replace("-", "−")
        return number(value, self.digits)


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def number(value: float, digits: int | None = None) -> str:
    """The value as text with `digits` decimals, by default with about three significant digits."""
    if digits is None:
        size = abs(value)
        if size and (size < 1e-3 or size >= 1e7):
            return f"{value:.2e}".replace("-", "−")
        digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}"
    return "0" + text[2:] if text.startswith("-0") and not float(text) else text.replace("-", "−")


def axis(values: Sequence[float], *, include: Sequence[float] = (), count: int = 4) -> Axis:
    """An axis of about `count` steps of 1, 2, 2.5 or 5 times a power of ten, around all finite values and `include`."""
    known = [value for value in (*values, *include) if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if max(abs(low), abs(high)) < 1e-12:  # all values are 0, which has no scale
        low, high = 0.0, 1.0
    elif high - low <= 1e-9 * max(abs(low), abs(high)):  # all values are equal
        low, high = low - 0.1 * abs(low), high + 0.1 * abs(high)
    rough = (high - low) / count
    power = math.floor(math.log10(rough))
    digit = next(digit for digit in (1, 2, 2.5, 5, 10) if digit * 10.0**power >= rough * (1 - 1e-9))
    step = 10.0**power * digit
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, max(0, -math.floor(math.log10(step) + 1e-9) + (digit == 2.5)))


def curve(
    label: str,
    points: Mapping[str, Sequence[Point]],
    stages: Mapping[str, tuple[int, int]],
    titles: Mapping[str, str],
    *,
    reference: float | None = None,
    include: Sequence[float] = (),
) -> str:
    """A chart of a figure over the steps of a run, each stage at a scale of its own, so that short ones are seen.

    Args:
      label: what a screen reader says.
      points: by stage; points of a stage that is not in `stages` are drawn at the start.
      stages: by stage, in order: the step before its first, and its last.
      titles: of the stages.
      reference: value of a dashed line.
      include: values that the y axis reaches to.
    """
    height, top, bottom = 190.0, 22.0, 168.0
    svg = _chart(height, label)
    left = dict(zip(stages, _places(stages), strict=True))
    found = [(stage, point) for stage in points for point in points[stage]]
    heights = [value for _, p in found for value in (p.value, p.low, p.high) if value is not None]
    y = axis(heights, include=[*include, *([] if reference is None else [reference])])

    def across(stage: str, step: float) -> float:
        if stage not in stages:
            return _LEFT
        (start, end), (x, width) = stages[stage], left[stage]
        return x + width * (step - start) / max(1, end - start)

    def up(value: float) -> float:
        return bottom - (bottom - top) * y.share(value)

    # The ground: stages with their names, the grid, and the steps where stages begin and end.
    for n, (stage, (x, width)) in enumerate(left.items()):
        _add(svg, "rect", cls="band" if n % 2 else "ground", x=x, y=top, width=width, height=bottom - top)
        _text(svg, x + width / 2, top - 7, titles.get(stage, stage), "stage", "middle")
    _grid(svg, y, up)
    if reference is not None:
        _add(svg, "line", cls="reference", x1=_LEFT, x2=WIDTH - _RIGHT, y1=up(reference), y2=up(reference))
    _text(svg, _LEFT - 20, bottom + 15, "step", "tick", "end")
    ends = [(start, left[stage][0]) for stage, (start, _) in stages.items()]
    ends += [(end, sum(left[stage])) for stage, (_, end) in list(stages.items())[-1:]]
    for step, x in ends:
        _add(svg, "line", cls="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4)
        _text(svg, x, bottom + 15, f"{step:,}", "tick", "middle")
    # The points, joined by a line.
    _add(svg, "path", cls="line", d=_path((across(stage, p.step), up(p.value)) for stage, p in found))
    for stage, p in found:
        mark, x = _add(svg, "g", cls="point"), across(stage, p.step)
        if p.low is not None and p.high is not None:
            _add(mark, "line", cls="whisker", x1=x, x2=x, y1=up(p.low), y2=up(p.high))
        _add(mark, "circle", cx=x, cy=up(p.value), r=3.2)
        _title(mark, f"{titles.get(stage, stage)}, step {p.step:,}: {_interval(p.value, p.low, p.high)}")
    return _svg(svg)


def bars(
    label: str, rows: Sequence[Bar], *, base: float, scale: Axis, note: str = "", digits: int | None = None
) -> str:
    """A chart of horizontal bars that start at `base`, each under its name, with its figure and interval.

    Args:
      label: what a screen reader says.
      rows: from top to bottom.
      base: where bars start.
      scale: the x axis.
      note: what the base means, written below a dashed line there.
      digits: decimals of the figures.
    """
    row, foot = 35.0, 22.0 + (13.0 if note else 0.0)
    x0, x1, bottom = 8.0, WIDTH - 14.0, row * len(rows)
    svg = _chart(bottom + foot, label)

    def across(value: float) -> float:
        return x0 + (x1 - x0) * scale.share(value)

    for tick in scale.ticks:
        _add(svg, "line", cls="grid", x1=across(tick), x2=across(tick), y1=2, y2=bottom)
        _text(svg, across(tick), bottom + 14, scale.label(tick), "tick", "middle")
    if note:
        _add(svg, "line", cls="reference", x1=across(base), x2=across(base), y1=2, y2=bottom + 3)
    for n, bar in enumerate(rows):
        y = row * n
        name = bar.name if len(bar.name) <= 22 else bar.name[:21] + "…"
        _text(svg, x0 + 4, y + 13, name, "name over", "start")
        if bar.value is None:
            _text(svg, x1, y + 13, "not measured", "tick over", "end")
            continue
        words = _interval(bar.value, bar.low, bar.high, digits)
        _text(svg, x1, y + 13, words, "value over", "end")
        group = _add(svg, "g", cls=bar.colour)
        start, end = sorted((across(base), across(bar.value)))
        _add(group, "rect", cls="bar", x=start, y=y + 19, width=max(end - start, 1), height=11, rx=1.5)
        if bar.low is not None and bar.high is not None:
            ends, middle = [across(bar.low), across(bar.high)], y + 24.5
            d = f"M{ends[0]:.1f} {middle}H{ends[1]:.1f}"
            d += "".join(f"M{x:.1f} {middle - 4}V{middle + 4}" for x in ends)
            for cls in ("whisker halo", "whisker"):
                _add(group, "path", cls=cls, d=d)
        _title(group, f"{bar.name}: {words}")
    if note:
        side = scale.share(base)
        anchor = "start" if side < 0.3 else "end" if side > 0.7 else "middle"
        _text(svg, across(base), bottom + 27, note, "tick", anchor)
    else:
        _add(svg, "line", cls="axis", x1=across(base), x2=across(base), y1=2, y2=bottom + 3)
    return _svg(svg)


def shares_of(histogram: Histogram, width: float) -> list[float]:
    """The percentage of answers in each bin, per `width` of length, so that bins of other widths compare."""
    total = sum(histogram.counts) or 1
    spans = zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
    return [100 * count / total * width / (right - left) for left, right, count in spans]


def histogram(
    label: str, own: Histogram, teacher: Histogram | None, *, colour: str, top_share: float, unit: str
) -> str:
    """A chart of a model's lengths as filled bars, with the teacher's lengths as an outline.

    Args:
      label: what a screen reader says.
      own: the model's lengths.
      teacher: the teacher's lengths, or None.
      colour: class of the model.
      top_share: percentage that the y axis reaches, the same for charts side by side.
      unit: of lengths, "tokens" or "words".
    """
    height, top, bottom = 156.0, 10.0, 122.0
    svg = _chart(height, label)
    width = own.edges[1] - own.edges[0]
    least, most = min(0, own.edges[0]), max(part.edges[-1] for part in (own, teacher) if part)
    x = axis([least, most], count=5).within(least, most)
    y = axis([top_share], include=[0.0], count=3)

    def across(length: float) -> float:
        return _LEFT + (WIDTH - _RIGHT - _LEFT) * x.share(length)

    def up(share: float) -> float:
        return bottom - (bottom - top) * y.share(share)

    _grid(svg, y, up, " %")
    for tick in x.ticks:
        _text(svg, across(tick), bottom + 15, x.label(tick), "tick", "middle")
    _text(svg, (WIDTH + _LEFT - _RIGHT) / 2, bottom + 30, f"{unit} in an answer", "tick", "middle")
    for left, right, share, count in zip(own.edges, own.edges[1:], shares_of(own, width), own.counts, strict=False):
        place = {"x": across(left) + 0.4, "width": max(across(right) - across(left) - 0.8, 0.4)}
        bar = _add(svg, "rect", cls=f"bar {colour}", y=up(share), height=bottom - up(share), **place)
        _title(bar, f"{number(left, 0)} to {number(right, 0)} {unit}: {count:,.0f} answers")
    if teacher:
        outline = [(across(teacher.edges[0]), up(0))]
        for left, right, share in zip(teacher.edges, teacher.edges[1:], shares_of(teacher, width), strict=False):
            outline += [(across(left), up(share)), (across(right), up(share))]
        _add(svg, "path", cls="outline", d=_path([*outline, (across(teacher.edges[-1]), up(0))]))
    _add(svg, "line", cls="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=bottom, y2=bottom)
    return _svg(svg)


def shares(label: str, parts: Sequence[tuple[str, int]]) -> str:
    """One bar divided by counts; `parts` are classes with their counts."""
    width, height = 200.0, 14.0
    svg = _chart(height, label, width=width, cls="shares")
    total, x = sum(count for _, count in parts) or 1, 0.0
    for cls, count in parts:
        if count:
            span = width * count / total
            _add(svg, "rect", cls=cls, x=x, y=1, width=max(span - 1, 0.5), height=height - 2)
            x += span
    _add(svg, "line", cls="axis", x1=width / 2, x2=width / 2, y1=0, y2=height)
    _title(svg, label)
    return _svg(svg)


def _places(stages: Mapping[str, tuple[int, int]]) -> list[tuple[float, float]]:
    """Left edge and width of each stage: in proportion to its steps, but wide enough for its name."""
    whole = WIDTH - _RIGHT - _LEFT
    least = min(_STAGE_WIDTH, whole / max(1, len(stages)))
    lengths = [max(1, end - start) for start, end in stages.values()]
    free = whole - least * len(stages)
    widths = [least + free * length / sum(lengths) for length in lengths]
    return [(_LEFT + sum(widths[:n]), width) for n, width in enumerate(widths)]


def _interval(value: float, low: float | None, high: float | None, digits: int | None = None) -> str:
    text = number(value, digits)
    return text if low is None or high is None else f"{text} ({number(low, digits)} to {number(high, digits)})"


def _grid(svg: ET.Element, y: Axis, up, unit: str = "") -> None:
    """Adds the horizontal lines of a y axis, with their labels."""
    for tick in y.ticks:
        _add(svg, "line", cls="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=up(tick), y2=up(tick))
        _text(svg, _LEFT - 6, up(tick) + 3.5, y.label(tick) + unit, "tick", "end")


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _chart(height: float, label: str, *, width: float = WIDTH, cls: str = "chart") -> ET.Element:
    view = f"0 0 {width:g} {height:g}"
    return ET.Element("svg", {"viewBox": view, "role": "img", "aria-label": label, "class": cls})


def _add(parent: ET.Element, tag: str, *, cls: str = "", **attributes: float | str) -> ET.Element:
    """Adds an element of these classes; numbers get one decimal, and `_` in names becomes `-`."""
    texts = {
        k.replace("_", "-"): f"{v:.1f}".removesuffix(".0") if isinstance(v, float) else str(v)
        for k, v in attributes.items()
    }
    return ET.SubElement(parent, tag, ({"class": cls} if cls else {}) | texts)


def _text(parent: ET.Element, x: float, y: float, text: str, cls: str, anchor: str) -> None:
    _add(parent, "text", cls=cls, x=x, y=y, text_anchor=anchor).text = text


def _title(parent: ET.Element, text: str) -> None:
    ET.SubElement(parent, "title").text = text


def _svg(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")
