"""What a run has logged, as tables for a notebook."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from gadjax.errors import UserError
from gadjax.files import expand
from gadjax.metrics import HELDOUT, SAMPLE, read_lines, read_metrics

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The logs of a run; each table is a `pandas.DataFrame` with the columns `stage` and `step` first.

    Attributes:
      config: the run's config, as it was used.
      train: a row for each step, with figures such as generator/loss.
      heldout: a row for each measurement on held-out prompts, with figures such as nll.
      warnings: a row for each moment when a watchdog's warning began or ended; empty if none did.
      samples: a row for each held-out answer that was kept: prompt, teacher, student.
    """

    config: dict[str, Any]
    train: pandas.DataFrame
    heldout: pandas.DataFrame
    warnings: pandas.DataFrame
    samples: pandas.DataFrame

    def __repr__(self) -> str:
        sizes = (f"{field.name}: {len(getattr(self, field.name))} rows" for field in dataclasses.fields(self)[1:])
        return f"RunLog({', '.join(sizes)})"


def read_run(workdir: str | os.PathLike[str]) -> RunLog:
    """The logs of a run, finished or not, as tables.

    Args:
      workdir: the run's folder.

    Raises:
      UserError: pandas is not installed, the folder is not the workdir of a run, or a log has a line that is no record.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError(
            "gadjax.read_run makes tables of pandas, which is absent: pip install 'gadjax[notebook]'"
        ) from None
    folder = expand(workdir)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not the workdir of a run: no config.json")
    records = read_metrics(folder / "metrics.jsonl")

    def table(rows: list[dict[str, Any]]) -> pandas.DataFrame:
        found = pandas.DataFrame(rows, columns=None if rows else ["stage", "step"])
        first = ["stage", "step"]
        return found[[*first, *(name for name in found.columns if name not in first)]]

    by_kind: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": [], "warning": []}
    for record in records:
        kind = record.pop("kind")
        by_kind[kind].append({name.removeprefix(HELDOUT): value for name, value in record.items()})
    samples = folder / "samples.jsonl"
    kept = [record for _, record in read_lines(samples, SAMPLE)] if samples.exists() else []
    return RunLog(
        json.loads((folder / "config.json").read_text(encoding="utf-8")),
        table(by_kind["train"]),
        table(by_kind["heldout"]),
        table(by_kind["warning"]),
        table(kept),
    )
