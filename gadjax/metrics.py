"""The logs of a run: metrics.jsonl, TensorBoard events, Weights & Biases, samples.jsonl.

`metrics.jsonl` is the run's record, one strict JSON object a line. There is a line for each step ("kind": "train"), for
each measurement on held-out prompts ("kind": "heldout"), and for each moment when a watchdog's warning begins or ends
("kind": "warning"; `gadjax.trainer.watchdogs` describes its fields). Steps are counted over all stages:

    {"kind": "train", "stage": "gad", "step": 120, "generator/loss": 0.0132, "generator/kl": 0.004, ...}

A figure that is not finite is null, and the line's field "nonfinite" says what it was. When a run continues, lines past
its checkpoint are removed first, so that each step is recorded once; TensorBoard drops the same events.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gadjax.append_log import AppendLog
from gadjax.errors import UserError
from gadjax.files import keeping, replace
from gadjax.metric_views import Sample, TensorBoard, WandB

HELDOUT = "heldout/"  # prefix of the figures measured on held-out prompts
BEGINS, ENDS = "begins", "ends"  # states of a watchdog's warning
_METRIC = ("kind", "stage", "step")  # fields that every line of metrics.jsonl has
SAMPLE = ("step", "stage")  # the same for samples.jsonl
_SAMPLES = 4  # answers of a measurement that TensorBoard shows

Figures = Mapping[str, Any]  # by name: Python numbers, numpy scalars, or arrays of one element


class MetricsLogger:
    """Writes a run's figures to `metrics.jsonl`, to TensorBoard (`tensorboard/`) and, if asked, to Weights & Biases."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        config: Mapping[str, Any] | None = None,
        write: bool = True,
    ):
        """Creates the files, or opens those of the run that continues.

        Args:
          workdir: the run's folder, which exists.
          tensorboard: whether TensorBoard events are written.
          wandb: arguments of `wandb.init`, such as project and config; None: nothing goes to Weights & Biases.
          resume_step: the step of the checkpoint from which the run continues. Lines past it are removed. None: the run
            starts over, because it is new or ended before its first checkpoint.
          config: the run's config, JSON values, for TensorBoard to show.
          write: False on every process but the first: nothing is written.

        Raises:
          UserError: a line of metrics.jsonl is not a record, a file cannot be written (all methods raise this), or
            Weights & Biases is asked for and cannot start.
        """
        workdir = pathlib.Path(workdir)
        self._record = _JsonLines(workdir / "metrics.jsonl", resume_step, _METRIC, write)
        self._views: list[TensorBoard | WandB] = []
        try:
            # The last step recorded, by kind.
            self._last = {"train": -1, "heldout": -1} | {record["kind"]: record["step"] for record in self._record.kept}
            stages = [record["stage"] for record in self._record.kept if record["kind"] == "train"]
            self._stages = list(dict.fromkeys(stages))  # that have begun
            if write and tensorboard:
                self._views.append(TensorBoard(workdir / "tensorboard", resume_step, config))
            if write and wandb is not None:
                self._views.append(WandB(workdir, dict(wandb), resume_step))
        except BaseException:
            self.close()  # a notebook's traceback would keep the log, and its lock
            raise

    def log(self, step: int, stage: str, figures: Figures) -> dict[str, int | float]:
        """Records a training step.

        Args:
          step: its number, counted over all stages; above every step recorded before.
          stage: the stage that the step belongs to.
          figures: by names such as "generator/loss".

        Returns:
          The figures as `read_metrics` will read them, also in a process that writes nothing.

        Raises:
          ValueError: the step is already recorded.
        """
        numbers = self._log("train", step, stage, figures)
        if begins := stage not in self._stages:
            self._stages.append(stage)
        for view in self._views:
            view.stage(step, stage, self._stages.index(stage) + 1, begins)
        return numbers

    def log_heldout(self, step: int, stage: str, figures: Figures) -> None:
        """Records figures measured on held-out prompts after `step`; their names gain the prefix "heldout/".

        Raises:
          ValueError: held-out figures of this step or a later one are already recorded.
        """
        self._log("heldout", step, stage, {HELDOUT + name: value for name, value in figures.items()})

    def show_samples(self, step: int, stage: str, samples: Iterable[Sample]) -> None:
        """Shows the first few of the answers to held-out prompts after `step` in TensorBoard.

        `SampleLog` is their record.
        """
        for sample in itertools.islice(samples, _SAMPLES):
            for view in self._views:
                view.sample(step, stage, sample)

    def log_warning(self, step: int, stage: str, watchdog: str, row: Mapping[str, Any], line: str) -> None:
        """Records a watchdog's message after a step, in `metrics.jsonl` and as a text in TensorBoard.

        Args:
          step, stage: as in `log`.
          watchdog: its name.
          row: further fields of the record, JSON values.
          line: the message for people.
        """
        self._record.write({"kind": "warning", "stage": stage, "step": step, "watchdog": watchdog}, row)
        for view in self._views:
            view.warn(step, watchdog, line)

    def sync(self) -> None:
        """Waits until `metrics.jsonl` is on the disk, so that it survives the machine and not only this process."""
        self._record.sync()

    def close(self) -> None:
        """Closes the files and ends the Weights & Biases run."""
        with contextlib.ExitStack() as closing:  # if one fails, the others are closed all the same
            for sink in (self._record, *self._views):
                closing.callback(sink.close)
        self._views = []

    def _log(self, kind: str, step: int, stage: str, figures: Figures) -> dict[str, int | float]:
        if step <= self._last[kind]:
            raise ValueError(f"{kind} figures of step {step} after those of step {self._last[kind]}")
        self._last[kind] = step
        numbers = {name: _number(name, value) for name, value in figures.items()}
        self._record.write({"kind": kind, "stage": stage, "step": step}, numbers)
        for view in self._views:
            view.write(step, stage, numbers)
        return numbers


class SampleLog:
    """Writes `samples.jsonl`: held-out prompts, the teacher's answers, and the student's answers as they change."""

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int | None = None, write: bool = True):
        """Opens the file; arguments and errors are those of `MetricsLogger`."""
        self._lines = _JsonLines(pathlib.Path(workdir) / "samples.jsonl", resume_step, SAMPLE, write)

    def sync(self) -> None:
        """Waits until the file is on the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def log(self, step: int, stage: str, sample: Sample) -> None:
        """Records one answer.

        Args:
          step: the step after which it was sampled, counted over all stages.
          stage: the stage of that step.
          sample: the prompt and the answers.
        """
        self._lines.write({"step": step, "stage": stage}, sample._asdict())


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl` in their order. Figures that were not finite are floats again.

    A last line without its end, which a killed run may leave, is left out.

    Raises:
      UserError: the file does not exist, or a line of it is not a record.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the workdir of a run that has made steps")
    records = [record for _, record in read_lines(path, _METRIC)]
    for record in records:
        record |= {name: float(text) for name, text in record.pop("nonfinite", {}).items()}
    return records


def read_stages(path: str | os.PathLike[str], *, last_step: int) -> dict[str, int]:
    """The number of steps made in each stage, counting those up to `last_step`; stages are in their order.

    Raises:
      UserError: as `read_metrics`.
    """
    records = read_metrics(path)
    return collections.Counter(r["stage"] for r in records if r["kind"] == "train" and r["step"] <= last_step)


def read_heldout(path: str | os.PathLike[str], *, last_step: float = math.inf) -> dict[str, dict[str, float]]:
    """The last held-out figures of each stage; stages are in their order, names without the prefix "heldout/".

    Args:
      path: of the `metrics.jsonl`.
      last_step: measurements after a later step of the run are left out.

    Raises:
      UserError: as `read_metrics`.
    """
    return heldout_figures(read_metrics(path), last_step=last_step)


def heldout_figures(
    records: Iterable[Mapping[str, Any]], *, last_step: float = math.inf
) -> dict[str, dict[str, float]]:
    """`read_heldout` of records that `read_metrics` has returned."""
    figures: dict[str, dict[str, float]] = {}
    for record in records:
        if record["kind"] == "heldout" and record["step"] <= last_step:
            named = record.items()
            figures[record["stage"]] = {k.removeprefix(HELDOUT): v for k, v in named if k.startswith(HELDOUT)}
    return figures


class _JsonLines:
    """A file of JSON objects with a "step" each. When a run continues, objects past its checkpoint are removed first.

    Attributes:
      kept: the objects that were in the file already.
    """

    def __init__(self, path: pathlib.Path, resume_step: int | None, fields: Sequence[str], write: bool):
        self.kept: list[dict[str, Any]] = []
        self._log: AppendLog | None = None
        if not write:
            return
        lines = []
        if resume_step is not None and path.exists():
            for line, record in read_lines(path, fields):
                if record["step"] <= resume_step:
                    lines.append(line + b"\n")
                    self.kept.append(record)
        with keeping(path):
            replace(path, b"".join(lines))
        self._log = AppendLog(path, "gadjax.train")

    def write(self, head: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        if self._log is None:
            return
        nonfinite = {k: str(v) for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        record = {**head, **values, **dict.fromkeys(nonfinite)}
        if nonfinite:
            record["nonfinite"] = nonfinite
        self._log.append(json.dumps(record, ensure_ascii=False, allow_nan=False))

    def sync(self) -> None:
        if self._log is not None:
            self._log.sync()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def read_lines(path: pathlib.Path, fields: Sequence[str]) -> Iterable[tuple[bytes, dict[str, Any]]]:
    """Yields each whole line and its record, which must have `fields`. A torn last line is left out."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not all(field in record for field in fields):
            raise UserError(
                f"{path} line {number} is not a record of gadjax: move the file away, or use another workdir"
            )
        yield line, record


def _number(name: str, value: Any) -> int | float:
    """A figure as a Python number; floats are rounded to 9 significant digits, which distinguish all float32 values."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, int):
        return int(number)
    if isinstance(number, float):
        return float(f"{number:.9g}")
    raise TypeError(f"figure {name} is {value!r}, not a number")
