"""The table of held-out figures by stage, on the terminal and in model cards: its columns, and the stages' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping


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


def _ngram_f1(figures: Mapping[str, float]) -> str | None:
    parts = [figures[name] for n in range(1, 6) if (name := f"ngram_f1_{n}") in figures]
    return f"{sum(parts) / 5:.3f}" if len(parts) == 5 else None


def _two_sample(figures: Mapping[str, float]) -> str | None:
    if "two_sample" not in figures:
        return None
    return f"{figures['two_sample']:.3f} ± {(figures['two_sample_high'] - figures['two_sample_low']) / 2:.3f}"


HELDOUT_COLUMNS = (
    Column("NLL\n(nats/token)", "negative log-likelihood of the teacher's answers", _rounded("nll", 3)),
    Column("ROUGE-L", "F-measure of the student's answers against the teacher's", _rounded("rouge_l", 3)),
    Column("n-gram\nF1", "of the student's answers against the teacher's, mean of n = 1 to 5", _ngram_f1),
    Column("length\n(tokens)", "mean of the student's answers", _rounded("length_mean", 1)),
    Column("discriminator\naccuracy", "pairs that this run's own puts right", _rounded("discriminator_accuracy", 3)),
    Column("two-sample\naccuracy", "fresh classifier, ± 95 % interval; 0.5 is no difference", _two_sample),
)


def heldout_cells(figures: Mapping[str, float]) -> list[str]:
    """A stage's held-out figures as text, in the order of `HELDOUT_COLUMNS`; "–" where not measured."""
    return [column.text(figures) or "–" for column in HELDOUT_COLUMNS]


def stage_title(stage: str) -> str:
    """A stage's name as people write it."""
    return {"seqkd": "SeqKD", "soda": "SODA", "gad": "GAD"}.get(stage, stage)
