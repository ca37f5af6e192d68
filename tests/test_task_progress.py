"""A task's bar on terminals of any width."""

from __future__ import annotations

import importlib.util
import io
import re
import types

import pytest
from rich.console import Console

from gadjax import progress, task_progress
from gadjax.progress import AnswerProgress, RunProgress

pytestmark = pytest.mark.quick

WIDTHS = (60, 80, 100, 140)
LONG = "self_instruct: answers of student-with-a-long-name, sampled"


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self):
        return self.now


def terminal(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, force_interactive=True, color_system=None)


def last_frame(console):
    """The row and the line of figures of the last bar drawn, without escape codes."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    last = max(number for number, line in enumerate(lines) if re.search(r"\d+/\d+( .* left)?$", line))
    return lines[last], "".join(lines[last + 1 :])


def drawn(row):
    """How many columns of a row are bar; the part that is not done is blank here, without colours."""
    bar = re.search(r" (━[━╸╺ ]*) \d+/", row)
    return len(bar.group(1)) if bar else 0


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_of_a_stage_keeps_its_bar_at_every_width(width):
    console, clock = terminal(width), Clock()
    with RunProgress(console=console, clock=clock) as shown:
        shown.start_stage("warmup", 20_000, 10_000)
        for _ in range(2):
            clock.now += 10
            shown.advance({"loss": 1.23456, "kl": 0.00123, "D acc": 0.875, "reward": -1.234e-4, "len": 123.4})
    row, figures = last_frame(console)
    assert max(len(row), len(figures)) <= width
    assert row[2:].startswith("warmup ") and row.endswith("10002/20000 27:46:20 left")
    assert drawn(row) >= 12
    everything = "  loss 1.23  kl 0.00123  D acc 0.875  reward -0.000123  len 123  10 s/step"
    assert figures == (everything if width >= 80 else everything[: everything.index("  len")]), "whole figures only"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_title_is_shortened_for_the_bar(width):
    console = terminal(width)
    with RunProgress(console=console, clock=Clock()) as shown:
        shown.update(LONG, 10_000, 20_000)
    row, _ = last_frame(console)
    assert len(row) <= width and drawn(row) >= 12 and row.endswith("10000/20000 ? left")
    title = row[2:].partition("━")[0].strip()
    assert title == LONG if width >= 100 else (title.endswith("…") and LONG.startswith(title[:-1]) and len(title) > 15)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_of_a_collection_keeps_its_bar_at_every_width(monkeypatch, width):
    console, clock = terminal(width), Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    teacher = types.SimpleNamespace(retries=12, limits=types.SimpleNamespace(pauses=3, allowed=8))
    budget = types.SimpleNamespace(limit=50.0, spent=12.3456)
    with AnswerProgress(console, 200_000, 100_000, teacher, budget) as answers:
        for _ in range(20):
            clock.now += 0.5
            answers.add(types.SimpleNamespace(completion_tokens=400))
    row, figures = last_frame(console)
    assert max(len(row), len(figures)) <= width
    assert row[2:].startswith("collecting ") and row.endswith("100020/200000 13:53:10 left")
    assert drawn(row) >= 12
    everything = "  2 answers/s  8000 tokens (800/s)  cost 12.35 of 50  12 repeated  8 at once"
    assert figures == (everything if width >= 80 else everything[: everything.index("  12 repeated")])


def test_where_there_is_no_room_the_time_left_goes_before_the_title():
    console = terminal(40)
    with RunProgress(console=console, clock=Clock()) as shown:
        shown.update("tokenising data.heldout", 10_000, 20_000)
    row, _ = last_frame(console)
    assert len(row) <= 40 and row[2:].startswith("tokenising") and row.endswith("10000/20000")
    assert drawn(row) >= 12


def test_a_title_is_no_markup():
    console = terminal(80)
    with RunProgress(console=console, clock=Clock()) as shown:
        shown.update("[bold]student[/bold]", 1, 2)
    assert "[bold]student[/bold]" in last_frame(console)[0]


@pytest.mark.parametrize("installed", [True, False])
def test_a_notebook_has_bars_where_it_has_widgets(monkeypatch, installed):
    """A terminal needs none."""
    found = importlib.util.find_spec("rich") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert task_progress._draws_bars(Console(force_jupyter=True)) is installed
    assert task_progress._draws_bars(Console(force_jupyter=False, force_terminal=True, force_interactive=True))
    assert not task_progress._draws_bars(Console(force_jupyter=False, force_terminal=False))
