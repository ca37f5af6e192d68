"""Shows what commands do: a bar for each stage or task, plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gadjax.files import is_url
from gadjax.stage_table import heldout_cells, heldout_columns, stage_title
from gadjax.task_progress import Clock, Task, duration, short

if TYPE_CHECKING:
    from gadjax.teacher.budget import Budget
    from gadjax.teacher.client import TeacherClient
    from gadjax.teacher.ledger import LedgerEntry

ProgressCallback = Callable[[str, int, int], None]  # what is done, number done, number of all
Place = str | os.PathLike[str]  # a path or a URL
StageFigures = Mapping[str, Mapping[str, float]]  # stage -> figure -> number, from `gadjax.metrics.read_heldout`

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
        self._shown: Task | None = None
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
            shown = self._start(what, total, 0, (), lines=1)
            self._what = what
        if done > shown.done:
            shown.advance(done)
        if done >= total:
            self.end_stage()

    def start_stage(self, stage: str, total: int, done: int = 0) -> None:
        """Shows a stage of `total` steps, of which an earlier process made `done`."""
        title, which = stage_title(stage), "next" if done else "first"
        self._start(title, total, done, [f"compiling the {which} step of {title}"], lines=_STAGE_LINES, unit="step")

    def advance(self, figures: Mapping[str, float], compiled: float = 0.0) -> None:
        """Counts one more step and shows its figures by their names.

        Args:
          figures: of the step.
          compiled: seconds that it spent on compiling. They say nothing about the steps that are left.
        """
        if self._shown is None:
            raise ValueError("advance() outside a stage: call start_stage() first")
        texts = [f"{name} {short(value)}" for name, value in figures.items()]
        self._shown.advance(self._shown.done + 1, texts, compiled)

    @contextlib.contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Says what is being done between steps: below the bar while it is done, elsewhere in a line."""
        if (shown := self._shown) is None:
            self.say(text)
            yield
            return
        figures = shown.figures
        shown.show([text])
        yield
        shown.restore(figures)

    def end_stage(self) -> None:
        """Ends the stage or task; its bar stays as it is."""
        if self._shown is not None:
            self._shown.close()
            self._shown = self._what = None

    def _start(self, title: str, total: int, done: int, figures: Sequence[str], **options: Any) -> Task:
        self.end_stage()
        self._shown = shown = Task(self.console, title, total, done, clock=self._clock, **options)
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
        names = ["run.html", "config.json", "metrics.jsonl", "samples.jsonl", "tensorboard"]
        files = dict(zip(("page", "config", "metrics", "samples", "TensorBoard"), names, strict=True))
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


class AnswerProgress(Task):
    """Shows a collection of answers: number, rate, tokens, cost, time left; a context manager."""

    def __init__(self, console: Console, total: int, kept: int, teacher: TeacherClient, budget: Budget | None):
        """`total` requests, of which earlier runs answered `kept`; without a budget, no cost is shown."""
        super().__init__(console, "collecting", total, kept, lines=0, clock=time.monotonic)
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

    def show(self, figures: Sequence[str] = ()) -> None:
        super().show(self._figures())

    def line(self, figures: Sequence[str]) -> str:
        left = self.left()
        return "  ".join([f"{self._title} {self.done}/{self._total}", *self._figures(left and f"{left} left")])

    def left(self) -> str:
        """Time left at the mean pace of this run; "" until some answers have come."""
        if self._received < _LEAST_ANSWERS:
            return ""
        seconds = (self._clock() - self._began) / self._received
        return duration(seconds * (self._total - self.done), hours=True)

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
