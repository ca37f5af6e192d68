"""One task's view on the terminal: a bar with figures below, plain lines where there is no terminal.

The time left is our own estimate, over a number of steps: rich's is over a number of seconds, in which few steps end.
"""

from __future__ import annotations

import collections
import importlib.util
import math
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

Clock = Callable[[], float]

_RECENT = 50  # steps whose mean duration gives the time left
_SILENCE = 30.0  # seconds without a line where there is no terminal, at most
_LEAST_BAR, _LEAST_TITLE = 12, 12  # columns of a terminal


class _Bar(Progress):
    """A bar of rich's, with the task's figures on the line below. The bar keeps a least width on a narrow terminal."""

    def __init__(self, console: Console):
        super().__init__(
            SpinnerColumn("line"),  # turns during steps that take minutes
            TextColumn("{task.fields[title]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
            refresh_per_second=4,
        )

    def get_renderables(self):
        for task in self.tasks:
            task.fields |= _fitted(task.description, task.fields["count"], task.fields["time"], self.console.width)
            bar = self.make_tasks_table([task])
            below = Text(f"  {_that_fit(task.fields['figures'], self.console.width - 2)}", style="dim", no_wrap=True)
            yield Group(bar, below) if task.fields["figures"] else bar


def _fitted(title: str, count: str, time_left: str, width: int) -> dict[str, str]:
    """A row's title, shortened where the bar has no room, and the time left, "" where the title has none."""
    room = width - _LEAST_BAR - len(f"-  {count}  ")  # with the spinner, and a blank between two columns
    left = f"{time_left} left"
    if room - len(left) < min(len(title), _LEAST_TITLE):
        left = ""
    shown = Text(title)
    shown.truncate(max(1, room - max(1, len(left))), overflow="ellipsis")  # rich gives an empty column a blank
    return {"title": shown.plain, "left": left}


def _that_fit(figures: Sequence[str], width: int) -> str:
    """The first figures, as many as a line has room for; of a single one that is too long, its beginning."""
    count = next((n for n in range(len(figures), 1, -1) if len("  ".join(figures[:n])) <= width), 1)
    line = Text("  ".join(figures[:count]))
    line.truncate(width, overflow="ellipsis")
    return line.plain


class Task:
    """Shows one task: a bar on a terminal; elsewhere `lines` lines, and one after every silence of 30 seconds.

    Attributes:
      figures: what was shown last.
    """

    def __init__(
        self, console: Console, title: str, total: int, done: int, *, lines: int, clock: Clock, unit: str = ""
    ):
        """`done` of `total` are done. `unit`: what one of them is called beside the pace; "" shows no pace."""
        self.done, self._total, self._title, self._lines, self._unit = done, total, title, lines, unit
        self._console, self._clock, self._printed = console, clock, clock()
        self.figures: Sequence[str] = ()
        self._compiled = 0.0  # seconds, which the ends of steps leave out
        self._ends: collections.deque[tuple[int, float]] = collections.deque(maxlen=_RECENT + 1)
        self._bar: _Bar | None = None
        if _draws_bars(console) and not console.quiet:
            self._bar = _Bar(console)
            self._row = self._bar.add_task(title, total=total)

    def show(self, figures: Sequence[str]) -> None:
        """Shows the state, with figures."""
        self.figures = figures
        if self._bar:
            count, left = f"{self.done}/{self._total}", self.left() or "?"
            self._bar.update(self._row, completed=self.done, count=count, time=left, figures=figures)
            self._bar.start()
        else:
            self._console.out(self.line(figures), highlight=False)
            self._printed = self._clock()

    def restore(self, figures: Sequence[str]) -> None:
        """Shows figures again that something else has replaced on a terminal; elsewhere they are still there."""
        self.figures = figures
        if self._bar:
            self.show(figures)

    def advance(self, done: int, figures: Sequence[str] = (), compiled: float = 0.0) -> None:
        """Takes the number of steps done; shows it on a terminal at once, elsewhere if a line is due.

        `compiled`: seconds of the steps that say nothing about the pace.
        """
        ended, self.done = self._part(), done
        self._compiled += compiled
        self._ends.append((done, self._clock() - self._compiled))
        if self._bar or self._part() > ended or self._clock() - self._printed >= _SILENCE:
            pace = self.pace() if self._unit else None
            self.show(figures if pace is None else [*figures, f"{short(pace)} s/{self._unit}"])

    def close(self) -> None:
        """Gives the terminal back."""
        if self._bar:
            self._bar.stop()

    def line(self, figures: Sequence[str]) -> str:
        """The state as a plain line."""
        line = f"{self._title} {self.done}/{self._total}, {self.left() or '?'} left"
        return f"{line}: {'  '.join(figures)}" if figures else line

    def pace(self) -> float | None:
        """Seconds a step, of recent ones; None until two have ended. The first, which loads and compiles, is left out.

        Where several threads compile at once, their seconds together may be more than have passed.
        """
        if len(self._ends) < 2:
            return None
        (first, start), (last, end) = self._ends[0], self._ends[-1]
        return max(0.0, end - start) / (last - first)

    def left(self) -> str:
        """The time left at this pace; "" as long as none is known."""
        pace = self.pace()
        return "" if pace is None else duration(pace * (self._total - self.done))

    def _part(self) -> int:
        return self.done * self._lines // self._total


def _draws_bars(console: Console) -> bool:
    """Whether rich can draw a bar that moves: on a terminal, and in a notebook that has ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_interactive


def duration(seconds: float, hours: bool = False) -> str:
    """H:MM:SS; M:SS where it is below an hour and `hours` is False."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 or hours else f"{minutes}:{rest:02}"


def short(value: float) -> str:
    """The number in few characters: three significant digits, without an exponent for common sizes."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
