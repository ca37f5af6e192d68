"""Axes of charts with round ticks, and numbers as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


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
