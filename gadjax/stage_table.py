"""The table of held-out figures by stage, on the terminal and in model cards: its columns, and the stages' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      title: at most two lines.
      meaning: what the column shows, for the table's notes.
      text: makes a cell from a stage's held-out figures; None if they were not measured.
    """

    title: str
    meaning: str
    text: Callable[[Mapping[str, float]], str | None]


def _rounded(name: str, digits: int) -> Callable[[Mapping[str, float]], str | None]:
    return lambda figures: f"{figures[name]:.{digits}f}" if name in figures else None


def _two_sample(figures: Mapping[str, float]) -> str | None:
    if "two_sample" not in figures:
        return None
    return f"{figures['two_sample']:.3f} ± {(figures['two_sample_high'] - figures['two_sample_low']) / 2:.3f}"


_COLUMNS = (
    Column("NLL", "negative log-likelihood of the teacher's answers, nats a token", _rounded("nll", 3)),
    Column("ROUGE-L", "F-measure of the student's answers against the teacher's", _rounded("rouge_l", 3)),
    Column("length", "tokens of the student's answers, mean", _rounded("length_mean", 1)),
    Column("coverage", "sampled answers that name all that they should", _rounded("coverage", 3)),
    Column("distinct-2", "different word pairs among those of the sampled answers", _rounded("sampled_distinct_2", 3)),
    Column("D's\naccuracy", "pairs that this run's discriminator puts right", _rounded("discriminator_accuracy", 3)),
    Column("two-sample\naccuracy", "fresh classifier, ± 95 % interval; 0.5 is no difference", _two_sample),
)


def heldout_columns(figures: Mapping[str, Mapping[str, float]]) -> list[Column]:
    """The columns that some stage has a figure for; `figures` by stage."""
    return [column for column in _COLUMNS if any(column.text(of_stage) for of_stage in figures.values())]


def heldout_cells(figures: Mapping[str, float], columns: Sequence[Column]) -> list[str]:
    """A stage's held-out figures as text, in the order of the columns; "–" where not measured."""
    return [column.text(figures) or "–" for column in columns]


def stage_title(stage: str) -> str:
    """A stage's name as people write it."""
    return {"seqkd": "SeqKD", "soda": "SODA", "gad": "GAD"}.get(stage, stage)
