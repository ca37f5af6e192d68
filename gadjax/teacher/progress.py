"""What a collection shows while it runs: answers, rate, tokens, cost, time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from gadjax.teacher.budget import Budget
from gadjax.teacher.client import TeacherClient
from gadjax.teacher.ledger import LedgerEntry

_PLAIN_SECONDS = 30.0  # between lines where there is no terminal
_LEAST_ANSWERS = 16  # before a time left is worth showing


class AnswerProgress:
    """A bar on a terminal, a line now and then elsewhere; a context manager."""

    def __init__(
        self,
        total: int,
        kept: int,
        teacher: TeacherClient,
        budget: Budget | None = None,
        *,
        console: Console | None = None,
    ):
        """
        Args:
          total: requests.
          kept: of those, answered by earlier runs.
          teacher: whose repeated attempts and limit in flight are shown.
          budget: whose cost is shown.
          console: where to show; standard output by default.
        """
        self._console = console or Console()
        self._total, self._kept, self._teacher, self._budget = total, kept, teacher, budget
        self._received = self._tokens = 0
        self._began = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_interactive:
            self._bar = Progress(
                SpinnerColumn("line"),
                TextColumn("collecting"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task(self._figures(), total=total, completed=kept)

    def __enter__(self) -> AnswerProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, answer: LedgerEntry) -> None:
        """Counts one more answer."""
        self._received += 1
        self._tokens += answer.completion_tokens or 0
        if self._bar:
            self._bar.update(self._task, completed=self._kept + self._received, description=self._figures())
        elif time.monotonic() - self._shown >= _PLAIN_SECONDS:
            self._shown = time.monotonic()
            self._console.print(f"collecting {self._figures()}", highlight=False, soft_wrap=True)

    def _figures(self) -> str:
        done, seconds = self._kept + self._received, time.monotonic() - self._began
        text = f"{done}/{self._total}"
        if self._received:
            text += f"  {self._received / seconds:.2g} answers/s  {self._tokens} tokens"
            text += f" ({self._tokens / seconds:.0f}/s)"
        if self._budget:
            text += f"  cost {self._budget.spent:.4g}"
            if self._budget.limit is not None:
                text += f" of {self._budget.limit:g}"
        if self._received >= _LEAST_ANSWERS:
            left = (self._total - done) * seconds / self._received
            minutes, rest = divmod(round(left), 60)
            hours, minutes = divmod(minutes, 60)
            text += f"  {hours}:{minutes:02}:{rest:02} left"
        if self._teacher.retries:
            text += f"  {self._teacher.retries} repeated"
        if self._teacher.limits.pauses:
            text += f"  {self._teacher.limits.allowed} at once"
        return text
