"""What commands show on the terminal: a bar for each stage or task; of a run, the stages' table and where all lies."""

from __future__ import annotations

import collections
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from gadjax.files import is_url
from gadjax.metrics import HELDOUT_COLUMNS, heldout_cells, stage_title

ProgressCallback = Callable[[str, int, int], None]  # what is done, number done, number of all
StageFigures = Mapping[str, Mapping[str, float]]  # stage -> figure -> number: gadjax.metrics.read_heldout

_RECENT = 50  # steps whose mean duration tells the time left
_PLAIN_PARTS = 10  # lines of a stage, at least, where there is no terminal
_MANY = 10_000  # things that are worth a bar to count them
_FIRST_STEP = "compiling with the first step"


class RunProgress:
    """Shows a run's stages, or another command's tasks, one after the other; a context manager.

    A terminal gets a bar that moves, and is left as it was. Elsewhere (a file, a pipe, a notebook) a plain line appears
    at every tenth of a stage, and when `plain_seconds` have passed since the last.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        enabled: bool = True,
        plain_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
          console: where to show; standard output by default.
          enabled: False shows nothing, for every process but the first.
          plain_seconds: longest silence without a terminal, in seconds.
          clock: seconds that only grow.
        """
        self.console = (console or Console()) if enabled else Console(quiet=True)
        self._plain_seconds = plain_seconds
        self._clock = clock
        self._bar: _LiveBar | _PlainBar | None = None
        self._task: str | None = None  # that `update` has begun

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_stage()

    def say(self, text: str) -> None:
        """Prints a line that stays, above a bar that moves."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def count(self, what: str, done: int, total: int) -> None:
        """Shows how many of many things are done, rows of a file say; nothing where they are few.

        Called again and again, from some `done` until it is `total`.
        """
        if total >= _MANY:
            self.update(what, done, total)

    def update(self, what: str, done: int, total: int) -> None:
        """Shows how far a task is.

        Called again and again, from some `done` until it is `total`; another `what` ends the task before. A call with 0
        shows it while nothing is done yet, and leaves what comes before the first out of the pace.
        """
        if self._task != what:
            self.end_stage()
            self._start(what, total, 0, "", parts=1)
            self._task = what
        if done > self._bar.pace.done:
            self._bar.advance("", done)
        if done >= total:
            self.end_stage()

    def start_stage(self, stage: str, total: int, done: int = 0) -> None:
        """Shows a stage of `total` steps, `done` of them made earlier."""
        self.end_stage()
        self._start(stage_title(stage), total, done, _FIRST_STEP, parts=_PLAIN_PARTS)

    def advance(self, figures: Mapping[str, float]) -> None:
        """Counts one more step and shows its figures, a few with short names."""
        if self._bar is None:
            raise ValueError("advance() outside a stage: call start_stage() first")
        self._bar.advance(_figures_text(figures), self._bar.pace.done + 1)

    def end_stage(self) -> None:
        """Leaves the stage's bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = self._task = None

    def _start(self, title: str, total: int, done: int, figures: str, *, parts: int) -> None:
        pace = _Pace(total, done, self._clock)
        if self.console.is_interactive and not self.console.quiet:
            self._bar = _LiveBar(self.console, title, pace, figures)
        else:
            self._bar = _PlainBar(self.console, title, pace, figures, parts, self._plain_seconds)

    def summary(
        self,
        figures: StageFigures,
        workdir: str | os.PathLike[str],
        checkpoints: str | os.PathLike[str],
        exported: Mapping[str, str | os.PathLike[str]],
    ) -> None:
        """See `print_summary`."""
        self.end_stage()
        print_summary(self.console, figures, workdir, checkpoints, exported)


def stage_table(figures: StageFigures) -> Table:
    """The held-out figures with a row for each stage, in 80 columns; what was not measured is "–"."""
    table = Table(title="Held-out prompts", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("stage", no_wrap=True, vertical="bottom")
    for column in HELDOUT_COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    for stage, values in figures.items():
        table.add_row(stage_title(stage), *heldout_cells(values))
    table.caption = "\n".join(f"{' '.join(column.title.split())}: {column.meaning}" for column in HELDOUT_COLUMNS)
    table.caption_justify = "left"
    return table


def print_summary(
    console: Console,
    figures: StageFigures,
    workdir: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str],
    exported: Mapping[str, str | os.PathLike[str]],
) -> None:
    """Prints the stages' table, where everything lies, and what to try next.

    Args:
      figures: by stage, "before" first; no table is printed where there are none.
      workdir: of the run.
      checkpoints: their folder, or a URL.
      exported: the folders of the exports by "generator" and "discriminator".
    """
    workdir = pathlib.Path(workdir)
    if figures:
        console.print()
        console.print(stage_table(figures))
    places = {
        "config": workdir / "config.json",
        "metrics": workdir / "metrics.jsonl",
        "samples": workdir / "samples.jsonl",
        "TensorBoard": workdir / "tensorboard",
        "checkpoints": os.fspath(checkpoints),
        **exported,
    }
    lines = [f"{name:<15}{place}" for name, place in places.items() if _is_there(place)]
    if "generator" in exported:
        lines += ["", f"Talk to it:    python -m gadjax.chat --model={exported['generator']}"]
    # Paths stay whole, so that they can be copied.
    console.print("\n" + "\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _is_there(place: str | os.PathLike[str]) -> bool:
    return is_url(place) or pathlib.Path(place).exists()


class _Pace:
    """Steps done, and the time left at the pace of the last ones.

    Counted from the end of the first step in this process, which compiles.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float]):
        self.total, self.done, self.clock = total, done, clock
        self._ends: collections.deque[tuple[int, float]] = collections.deque(maxlen=_RECENT + 1)

    def advance(self, done: int) -> None:
        self.done = done
        self._ends.append((done, self.clock()))

    def left(self) -> str:
        """Hours, minutes and seconds; "?" until two steps are done."""
        if len(self._ends) < 2:
            return "?"
        (first, start), (last, end) = self._ends[0], self._ends[-1]
        per_step = (end - start) / (last - first)
        minutes, seconds = divmod(round(per_step * (self.total - self.done)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _LiveBar:
    """A bar that moves, the figures on the line below it."""

    def __init__(self, console: Console, title: str, pace: _Pace, figures: str):
        self.pace = pace
        self._progress = _TwoLines(
            SpinnerColumn("line"),  # moves through steps that take minutes
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[left]} left"),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            title,
            total=pace.total,
            completed=pace.done,
            left="?",
            figures=figures,
        )
        self._progress.start()

    def advance(self, figures: str, done: int) -> None:
        self.pace.advance(done)
        self._progress.update(self._task, completed=done, left=self.pace.left(), figures=figures)

    def close(self) -> None:
        self._progress.stop()


class _TwoLines(Progress):
    def get_renderables(self):
        for task in self.tasks:
            bar, figures = self.make_tasks_table([task]), task.fields["figures"]
            below = Text(f"  {figures}", style="dim", no_wrap=True, overflow="ellipsis")
            yield Group(bar, below) if figures else bar


class _PlainBar:
    """Lines without control codes."""

    def __init__(self, console: Console, title: str, pace: _Pace, figures: str, parts: int, silence: float):
        self._console, self._title, self.pace, self._parts, self._silence = console, title, pace, parts, silence
        self._show(figures)

    def advance(self, figures: str, done: int) -> None:
        part = self._part()
        self.pace.advance(done)
        if self._part() > part or self.pace.clock() - self._shown >= self._silence:
            self._show(figures)

    def _part(self) -> int:
        return self.pace.done * self._parts // self.pace.total

    def _show(self, figures: str) -> None:
        pace = self.pace
        self._shown = pace.clock()
        text = f"{self._title} {pace.done}/{pace.total}, {pace.left()} left" + (f": {figures}" if figures else "")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass


def _figures_text(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in figures.items())


def _short(value: float) -> str:
    """A number in few characters: three significant digits, no exponent for common sizes."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
