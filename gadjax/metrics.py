"""What a run leaves behind to be read: metrics.jsonl, TensorBoard events, W&B, samples.jsonl.

`metrics.jsonl` is the record: strict JSON, a line a step ("kind": "train"), a line a measurement on held-out
prompts ("kind": "heldout") and a line where a watchdog's warning begins or ends ("kind": "warning", whose fields
`gadjax.trainer.watchdogs` describes), each with the stage and the step, which counts over all stages:

    {"kind": "train", "stage": "gad", "step": 120, "generator/loss": 0.0132, "generator/kl": 0.004, ...}

A figure that is not finite is null there, and "nonfinite" says what it was. A run that continues first
removes what lies past its checkpoint, so that each step stands once, in the events too.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from gadjax.errors import UserError
from gadjax.files import keeping, replace

HELDOUT = "heldout/"  # prefix of the figures measured on held-out prompts
BEGINS, ENDS = "begins", "ends"  # states of a watchdog's warning
_METRIC = ("kind", "stage", "step")  # what every line of metrics.jsonl has
_SAMPLE = ("step", "stage")

Figures = Mapping[str, Any]  # name -> number: Python, numpy, or any array of one element on the host


class MetricsLogger:
    """Writes a run's figures to `metrics.jsonl`, TensorBoard (`tensorboard/`) and, when asked, W&B."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        write: bool = True,
    ):
        """Opens the files, creating or continuing them.

        Args:
          workdir: of the run; exists.
          wandb: arguments of `wandb.init`, such as project and config; None logs nothing there.
          resume_step: the checkpoint's step that the run continues after; what lies past it is removed. None
            starts over: a fresh run, or one that ended before its first checkpoint.
          write: False on every process but the first, where nothing is written.

        Raises:
          UserError: a line of metrics.jsonl is no record, a file cannot be written (from every method), or W&B is asked
            for and cannot start.
        """
        self._sinks: list[_JsonLines | _TensorBoard | _WandB] = []
        self._last = {"train": -1, "heldout": -1}
        if not write:
            return
        workdir = pathlib.Path(workdir)
        lines = _JsonLines(workdir / "metrics.jsonl", resume_step, _METRIC)
        self._sinks.append(lines)
        for record in lines.kept:
            self._last[record["kind"]] = record["step"]
        if tensorboard:
            self._sinks.append(_TensorBoard(workdir / "tensorboard", resume_step))
        if wandb is not None:
            self._sinks.append(_WandB(workdir, dict(wandb), resume_step))

    def log(self, step: int, stage: str, figures: Figures) -> dict[str, int | float]:
        """Records a training step.

        Args:
          step: counts over all stages; above every step logged before.
          stage: that the step belongs to.
          figures: by names such as "generator/loss".

        Returns:
          The figures as `read_metrics` will read them, where this process writes nothing too.

        Raises:
          ValueError: the step is already recorded.
        """
        return self._log("train", step, stage, figures)

    def log_heldout(self, step: int, stage: str, figures: Figures) -> None:
        """Records figures measured on held-out prompts after `step`; their names gain the prefix "heldout/".

        Raises:
          ValueError: held-out figures of this step or a later one are already recorded.
        """
        self._log("heldout", step, stage, {HELDOUT + name: value for name, value in figures.items()})

    def log_warning(self, step: int, stage: str, watchdog: str, row: Mapping[str, Any], line: str) -> None:
        """Records what a watchdog says after a step, in `metrics.jsonl` and as a text of TensorBoard.

        Args:
          watchdog: its name.
          row: further fields of the record, JSON values.
          line: all of it for people.
        """
        head = {"kind": "warning", "stage": stage, "step": step, "watchdog": watchdog}
        for sink in self._sinks:
            sink.warn(head, row, line)

    def sync(self) -> None:
        """Returns when `metrics.jsonl` survives the machine's death, and not this process's alone."""
        for sink in self._sinks:
            if isinstance(sink, _JsonLines):  # the others are for looking at
                sink.sync()

    def close(self) -> None:
        """Closes the files and ends the W&B run."""
        with contextlib.ExitStack() as closing:  # one that fails keeps none of the others open
            for sink in self._sinks:
                closing.callback(sink.close)
        self._sinks = []

    def _log(self, kind: str, step: int, stage: str, figures: Figures) -> dict[str, int | float]:
        if step <= self._last[kind]:
            raise ValueError(f"{kind} figures of step {step} after those of step {self._last[kind]}")
        self._last[kind] = step
        numbers = {name: _number(name, value) for name, value in figures.items()}
        for sink in self._sinks:
            sink.write({"kind": kind, "stage": stage, "step": step}, numbers)
        return numbers


class SampleLog:
    """Writes `samples.jsonl`: held-out prompts, the teacher's answers and the student's as they change."""

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int | None = None, write: bool = True):
        """See `MetricsLogger` for the arguments and errors."""
        self._lines = _JsonLines(pathlib.Path(workdir) / "samples.jsonl", resume_step, _SAMPLE) if write else None

    def log(self, step: int, stage: str, row: int, prompt: str, teacher: str, student: str) -> None:
        """Records one answer.

        Args:
          step: after which it was sampled, counted over all stages.
          stage: of that step.
          row: of the held-out file.
          prompt, teacher, student: as text.
        """
        if self._lines is not None:
            answer = {"row": row, "prompt": prompt, "teacher": teacher, "student": student}
            self._lines.write({"step": step, "stage": stage}, answer)

    def sync(self) -> None:
        """See `MetricsLogger.sync`."""
        if self._lines is not None:
            self._lines.sync()

    def close(self) -> None:
        """Closes the file."""
        if self._lines is not None:
            self._lines.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl` in their order, figures that were not finite as floats again.

    A last line without its end, as a killed run leaves it, is left out.

    Raises:
      UserError: there is no such file, or a line of it is no record.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the workdir of a run that has made steps")
    records = [record for _, record in _read_lines(path, _METRIC)]
    for record in records:
        record |= {name: float(text) for name, text in record.pop("nonfinite", {}).items()}
    return records


def read_stages(path: str | os.PathLike[str], *, last_step: int) -> dict[str, int]:
    """Steps made in each stage up to a step of the run, stages in order.

    Raises:
      UserError: as `read_metrics`.
    """
    records = read_metrics(path)
    return collections.Counter(r["stage"] for r in records if r["kind"] == "train" and r["step"] <= last_step)


def read_heldout(path: str | os.PathLike[str], *, last_step: float = math.inf) -> dict[str, dict[str, float]]:
    """The last held-out figures of each stage in a `metrics.jsonl`, stages in order, names without prefix.

    Args:
      path: of the file.
      last_step: what was measured after a later step of the run is left out.

    Raises:
      UserError: as `read_metrics`.
    """
    figures: dict[str, dict[str, float]] = {}
    for record in read_metrics(path):
        if record["kind"] == "heldout" and record["step"] <= last_step:
            named = record.items()
            figures[record["stage"]] = {k.removeprefix(HELDOUT): v for k, v in named if k.startswith(HELDOUT)}
    return figures


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the stages' table, on the terminal and in model cards."""

    title: str  # in two lines at most
    meaning: str
    text: Callable[[Mapping[str, float]], str | None]  # from a stage's held-out figures; None: not measured


def _plain(name: str, digits: int) -> Callable[[Mapping[str, float]], str | None]:
    return lambda figures: f"{figures[name]:.{digits}f}" if name in figures else None


def _ngram_f1(figures: Mapping[str, float]) -> str | None:
    parts = [figures.get(f"ngram_f1_{n}") for n in range(1, 6)]
    return None if None in parts else f"{sum(parts) / len(parts):.3f}"


def _two_sample(figures: Mapping[str, float]) -> str | None:
    if "two_sample" not in figures:
        return None
    return f"{figures['two_sample']:.3f} ± {(figures['two_sample_high'] - figures['two_sample_low']) / 2:.3f}"


HELDOUT_COLUMNS = (
    Column("NLL\n(nats/token)", "negative log-likelihood of the teacher's answers", _plain("nll", 3)),
    Column("ROUGE-L", "of the student's answers against the teacher's, F-measure", _plain("rouge_l", 3)),
    Column("n-gram\nF1", "of the student's answers against the teacher's, mean of n = 1 to 5", _ngram_f1),
    Column("length\n(tokens)", "mean of the student's answers", _plain("length_mean", 1)),
    Column("discriminator\naccuracy", "pairs that this run's own puts right", _plain("discriminator_accuracy", 3)),
    Column("two-sample\naccuracy", "fresh classifier, ± 95 % interval; 0.5 is no difference", _two_sample),
)


def heldout_cells(figures: Mapping[str, float]) -> list[str]:
    """A stage's held-out figures as text, in the order of `HELDOUT_COLUMNS`; "–" where not measured."""
    return [column.text(figures) or "–" for column in HELDOUT_COLUMNS]


def stage_title(stage: str) -> str:
    """A stage's name as people write it."""
    return {"seqkd": "SeqKD", "gad": "GAD"}.get(stage, stage)


class _JsonLines:
    """A file of JSON lines with a "step" each."""

    def __init__(self, path: pathlib.Path, resume_step: int | None, fields: Sequence[str]):
        self.kept: list[dict[str, Any]] = []
        lines = []
        if resume_step is not None and path.exists():
            kept = [(line, record) for line, record in _read_lines(path, fields) if record["step"] <= resume_step]
            lines, self.kept = [line for line, _ in kept], [record for _, record in kept]
        self._path = path
        with keeping(path):
            replace(path, b"".join(line + b"\n" for line in lines))
            self._file: BinaryIO = open(path, "ab")  # noqa: SIM115, open as long as the run

    def write(self, head: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        nonfinite = {k: str(v) for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        record = {**head, **values, **dict.fromkeys(nonfinite)}
        if nonfinite:
            record["nonfinite"] = nonfinite
        with keeping(self._path):
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def warn(self, head: Mapping[str, Any], row: Mapping[str, Any], line: str) -> None:
        self.write(head, row)

    def sync(self) -> None:
        with keeping(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with keeping(self._path):
            self._file.close()


class _TensorBoard:
    """A TensorBoard event file with a scalar for each figure.

    Built from TensorBoard's protos and record format alone: its own EventFileWriter imports tensorflow where
    it is installed.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None):
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._tensor, self._string = tensor_pb2.TensorProto, types_pb2.DT_STRING
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        self._text = summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_TENSOR)
        # TensorBoard reads a folder's files in the order of their names.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        self._path = folder / f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}"
        with keeping(self._path):
            folder.mkdir(exist_ok=True)
            self._writer = RecordWriter(open(self._path, "wb"))  # noqa: SIM115, open as long as the run
        self._add(file_version="brain.Event:2")
        # A start drops what earlier files hold from its step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=0 if resume_step is None else resume_step + 1, session_log=start)

    def write(self, head: Mapping[str, Any], values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=head["step"], summary=self._summary(value=scalars))

    def warn(self, head: Mapping[str, Any], row: Mapping[str, Any], line: str) -> None:
        text = self._tensor(dtype=self._string, string_val=[line.encode()])
        value = self._summary.Value(tag=f"warning/{head['watchdog']}", metadata=self._text, tensor=text)
        self._add(step=head["step"], summary=self._summary(value=[value]))

    def _add(self, **fields: Any) -> None:
        with keeping(self._path):
            self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._writer.flush()

    def close(self) -> None:
        with keeping(self._path):
            self._writer.close()


class _WandB:
    """A Weights & Biases run; the same one when a workdir's run continues."""

    def __init__(self, workdir: pathlib.Path, arguments: dict[str, Any], resume_step: int | None):
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError(
                "config.log.wandb_project asks for Weights & Biases, which is not installed: pip install "
                'wandb, or leave the field at ""'
            ) from None
        name = workdir / "wandb_id"
        if resume_step is None or not name.exists():
            replace(name, uuid.uuid4().hex.encode())
        try:
            # W&B itself ignores steps that the run already has.
            self._run = wandb.init(dir=workdir, id=name.read_text(), resume="allow", **arguments)
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not start ({error}): wandb login, or set WANDB_MODE=offline"
            ) from None

    def write(self, head: Mapping[str, Any], values: Mapping[str, float]) -> None:
        self._run.log({**values, "stage": head["stage"]}, step=head["step"])

    def warn(self, head: Mapping[str, Any], row: Mapping[str, Any], line: str) -> None:
        """Nothing: W&B draws its alerts from the figures, by rules of its own."""

    def close(self) -> None:
        self._run.finish()


def _read_lines(path: pathlib.Path, fields: Sequence[str]) -> Iterable[tuple[bytes, dict[str, Any]]]:
    """Each whole line with its record, which has the fields; what follows the last line's end is torn."""
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
    """A figure as JSON has it; floats to 9 significant digits, which tell all float32 apart."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, int):
        return int(number)
    if isinstance(number, float):
        return float(f"{number:.9g}")
    raise TypeError(f"figure {name} is {value!r}, not a number")
