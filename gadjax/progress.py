"""Shows what commands do: a bar for each stage or task, plain lines where there is no terminal.

The time left is our own estimate, over a number of steps: rich's is over a number of seconds, in which few steps end.
"""

from __future__ import annotations

import collections
import importlib.util
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from gadjax.files import is_url
from gadjax.stage_table import heldout_cells, heldout_columns, stage_title

if TYPE_CHECKING:
    from gadjax.teacher.budget import Budget
    from gadjax.teacher.client import TeacherClient
    from gadjax.teacher.ledger import LedgerEntry

ProgressCallback = Callable[[str, int, int], None]  # what is done, number done, number of all
Clock = Callable[[], float]
Place = str | os.PathLike[str]  # a path or a URL
StageFigures = Mapping[str, Mapping[str, float]]  # stage -> figure -> number, from `gadjax.metrics.read_heldout`

_RECENT = 50  # steps whose mean duration gives the time left
_SILENCE = 30.0  # seconds without a line where there is no terminal, at most
_STAGE_LINES = 10  # of a stage where there is no terminal, at least
_MANY = 10_000  # rows of a file from which on a bar counts them
_LEAST_ANSWERS = 16  # received before the time left is shown


class RunProgress:
    """Shows a run's stages, or another command's tasks, one after the other; a context manager."""

    def __init__(self, *, console: Console | None = None, enabled: bool = True, clock: Clock = time.monotonic):
        """
        Args:
          console: where to print; standard output by default.
          enabled: False prints nothing, as in every process but the first.
          clock: returns seconds that only grow.
        """
        self.console = (console or Console()) if enabled else Console(quiet=True)
        self._clock = clock
        self._shown: _Task | None = None
        self._what: str | None = None  # the task that `update` has begun

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_stage()

    def say(self, text: str) -> None:
        """Prints text that stays, above a bar that moves; paths in it stay whole."""
        self.console.out(text, highlight=False)

    def count(self, what: str, done: int, total: int) -> None:
        """Shows how many rows of a file are done, as `update` does; nothing if the file has few rows."""
        if total >= _MANY:
            self.update(what, done, total)

    def update(self, what: str, done: int, total: int) -> None:
        """Shows how far a task is; a `ProgressCallback`.

        Another `what` ends the task before, and `done == total` ends this one. A first call with `done == 0` keeps the
        time before the first result, in which weights load and programs compile, out of the time left.
        """
        shown = self._shown
        if shown is None or self._what != what:
            shown = self._start(what, total, 0, "", lines=1)
            self._what = what
        if done > shown.done:
            shown.advance(done)
        if done >= total:
            self.end_stage()

    def start_stage(self, stage: str, total: int, done: int = 0) -> None:
        """Shows a stage of `total` steps, of which an earlier process made `done`."""
        self._start(stage_title(stage), total, done, "compiling with the first step", lines=_STAGE_LINES)

    def advance(self, figures: Mapping[str, float]) -> None:
        """Counts one more step and shows its figures by their names."""
        if self._shown is None:
            raise ValueError("advance() outside a stage: call start_stage() first")
        text = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        self._shown.advance(self._shown.done + 1, text)

    def end_stage(self) -> None:
        """Ends the stage or task; its bar stays as it is."""
        if self._shown is not None:
            self._shown.close()
            self._shown = self._what = None

    def _start(self, title: str, total: int, done: int, figures: str, *, lines: int) -> _Task:
        self.end_stage()
        self._shown = shown = _Task(self.console, title, total, done, lines, self._clock)
        shown.show(figures)
        return shown

    def summary(self, figures: StageFigures, workdir: Place, checkpoints: Place, exported: Mapping[str, Place]) -> None:
        """Prints the stages' table unless `figures` is empty, the paths of what the run wrote, and how to chat with it.

        `figures` has "before" first. `checkpoints` may be a URL. `exported` is by "generator" and "discriminator".
        """
        self.end_stage()
        if figures:
            self.console.print()
            self.console.print(stage_table(figures))
        workdir = pathlib.Path(workdir)
        files = dict(config="config.json", metrics="metrics.jsonl", samples="samples.jsonl", TensorBoard="tensorboard")
        places: dict[str, Place] = {name: workdir / file for name, file in files.items()}
        places |= {"checkpoints": os.fspath(checkpoints), **exported}
        lines = [f"{name:<15}{place}" for name, place in places.items() if is_url(place) or os.path.exists(place)]
        if "generator" in exported:
            lines += ["", f"Talk to it:    python -m gadjax.chat --model={exported['generator']}"]
        self.say("\n" + "\n".join(lines))


def stage_table(figures: StageFigures) -> Table:
    """The held-out figures, a row for each stage, in 80 columns; "–" stands for what was not measured."""
    table = Table(title="Held-out prompts", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("stage", no_wrap=True, vertical="bottom")
    columns = heldout_columns(figures)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for stage, values in figures.items():
        table.add_row(stage_title(stage), *heldout_cells(values, columns))
    table.caption = "\n".join(f"{' '.join(column.title.split())}: {column.meaning}" for column in columns)
    table.caption_justify = "left"
    return table


class _Bar(Progress):
    """A bar of rich's, with the task's figures on the line below."""

    def get_renderables(self):
        for task in self.tasks:
            bar, figures = self.make_tasks_table([task]), task.fields["figures"]
            below = Text(f"  {figures}", style="dim", no_wrap=True, overflow="ellipsis")
            yield Group(bar, below) if figures else bar


class _Task:
    """Shows one task: a bar on a terminal; elsewhere `lines` lines, and one after every silence of 30 seconds."""

    def __init__(self, console: Console, title: str, total: int, done: int, lines: int, clock: Clock):
        self.done, self._total, self._title, self._lines = done, total, title, lines
        self._console, self._clock, self._printed = console, clock, clock()
        self._ends: collections.deque[tuple[int, float]] = collections.deque(maxlen=_RECENT + 1)
        self._bar: _Bar | None = None
        if _draws_bars(console) and not console.quiet:
            self._bar = _Bar(
                SpinnerColumn("line"),  # turns during steps that take minutes
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[left]} left"),
                console=console,
                expand=True,
                refresh_per_second=4,
            )
            self._row = self._bar.add_task(title, total=total)

    def show(self, figures: str) -> None:
        """Shows the state, with figures."""
        if self._bar:
            self._bar.update(self._row, completed=self.done, left=self.left() or "?", figures=figures)
            self._bar.start()
        else:
            self._console.out(self.line(figures), highlight=False)
            self._printed = self._clock()

    def advance(self, done: int, figures: str = "") -> None:
        """Takes the number of steps done; shows it on a terminal at once, elsewhere if a line is due."""
        ended, self.done = self._part(), done
        self._ends.append((done, self._clock()))
        if self._bar or self._part() > ended or self._clock() - self._printed >= _SILENCE:
            self.show(figures)

    def close(self) -> None:
        """Gives the terminal back."""
        if self._bar:
            self._bar.stop()

    def line(self, figures: str) -> str:
        """The state as a plain line."""
        line = f"{self._title} {self.done}/{self._total}, {self.left() or '?'} left"
        return f"{line}: {figures}" if figures else line

    def left(self) -> str:
        """Time left at the pace of recent steps; "" until two have ended: the first one compiles, and is left out."""
        if len(self._ends) < 2:
            return ""
        (first, start), (last, end) = self._ends[0], self._ends[-1]
        return _duration((end - start) / (last - first) * (self._total - self.done))

    def _part(self) -> int:
        return self.done * self._lines // self._total


class AnswerProgress(_Task):
    """Shows a collection of answers: number, rate, tokens, cost, time left; a context manager."""

    def __init__(self, console: Console, total: int, kept: int, teacher: TeacherClient, budget: Budget | None):
        """`total` requests, of which earlier runs answered `kept`; without a budget, no cost is shown."""
        super().__init__(console, "collecting", total, kept, 0, time.monotonic)
        self._teacher, self._budget = teacher, budget
        self._received, self._tokens, self._began = 0, 0, self._clock()

    def __enter__(self) -> AnswerProgress:
        if self._bar:
            self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, answer: LedgerEntry) -> None:
        """Counts one more answer."""
        self._received += 1
        self._tokens += answer.completion_tokens or 0
        self.advance(self.done + 1)

    def show(self, figures: str = "") -> None:
        super().show("  ".join(self._figures()))

    def line(self, figures: str) -> str:
        left = self.left()
        return "  ".join([f"{self._title} {self.done}/{self._total}", *self._figures(left and f"{left} left")])

    def left(self) -> str:
        """Time left at the mean pace of this run; "" until some answers have come."""
        if self._received < _LEAST_ANSWERS:
            return ""
        seconds = (self._clock() - self._began) / self._received
        return _duration(seconds * (self._total - self.done), hours=True)

    def _figures(self, left: str = "") -> list[str]:
        seconds, budget, teacher = self._clock() - self._began, self._budget, self._teacher
        limit = f" of {budget.limit:g}" if budget and budget.limit is not None else ""
        figures = (
            self._received and f"{self._received / seconds:.2g} answers/s",
            self._received and f"{self._tokens} tokens ({self._tokens / seconds:.0f}/s)",
            budget and f"cost {budget.spent:.4g}{limit}",
            left,
            teacher.retries and f"{teacher.retries} repeated",
            teacher.limits.pauses and f"{teacher.limits.allowed} at once",
        )
        return [figure for figure in figures if figure]


def _draws_bars(console: Console) -> bool:
    """Whether rich can draw a bar that moves: on a terminal, and in a notebook that has ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_interactive


def _duration(seconds: float, hours: bool = False) -> str:
    """H:MM:SS; M:SS where it is below an hour and `hours` is False."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 or hours else f"{minutes}:{rest:02}"


def _short(value: float) -> str:
    """The number in few characters: three significant digits, without an exponent for common sizes."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figures_that_matter(metrics: dict[str, Any]) -> dict[str, float]:
    """The few figures that the progress bar has room for, by their short names."""
    names = {
        "generator/loss": "loss",
        "generator/kl": "kl",
        "discriminator/accuracy": "D acc",
        "reward/mean": "reward",
        "response/length_mean": "len",
    }
    return {short: float(metrics[name]) for name, short in names.items() if name in metrics}
