"""Views of a run's figures outside of its own record: TensorBoard events, Weights & Biases."""

from __future__ import annotations

import json
import pathlib
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from gadjax.errors import UserError
from gadjax.files import keeping, replace


class Sample(NamedTuple):
    """The student's answer to a held-out prompt.

    Attributes:
      row: the prompt's row in the held-out file.
      prompt, teacher, student: as text.
    """

    row: int
    prompt: str
    teacher: str
    student: str


class TensorBoard:
    """A TensorBoard event file: a scalar for each figure; texts for the config, stages, samples and warnings.

    It uses only TensorBoard's protos and record format. TensorBoard's own writer, `EventFileWriter`, imports tensorflow
    where it is installed, and writes in a thread, so that a full disk would go unnoticed for minutes.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None, config: Mapping[str, Any] | None):
        """Opens a new file in `folder`; the other arguments are those of `gadjax.metrics.MetricsLogger`."""
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
            begins = resume_step is None or not any(folder.iterdir())
            self._writer = RecordWriter(open(self._path, "wb"))  # noqa: SIM115, open as long as the run
        self._add(file_version="brain.Event:2")
        # The event START at a step makes TensorBoard drop what earlier files hold from that step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=0 if resume_step is None else resume_step + 1, session_log=start)
        if begins and config is not None:
            self._show(0, "config", _verbatim(json.dumps(config, indent=2, sort_keys=True)))

    def write(self, step: int, stage: str, figures: Mapping[str, float]) -> None:
        """Writes a scalar for each figure."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def stage(self, step: int, stage: str, number: int, begins: bool) -> None:
        """Writes the stage's number, counted from 1, as a scalar of each step; where it begins, its name as a text."""
        self._add(step=step, summary=self._summary(value=[self._summary.Value(tag="stage", simple_value=number)]))
        if begins:
            self._show(step, "stages", f"stage {number}, {stage}, begins with step {step}")

    def sample(self, step: int, stage: str, sample: Sample) -> None:
        """Writes one answer as a text. Each prompt has a tag of its own, under which its answers follow each other."""
        texts = {"prompt": sample.prompt, "teacher": sample.teacher, f"student, {stage}, step {step}": sample.student}
        parts = [f"**{title}**\n\n{_verbatim(text)}" for title, text in texts.items()]
        self._show(step, f"samples/row {sample.row}", "\n\n".join(parts))

    def warn(self, step: int, watchdog: str, line: str) -> None:
        """Writes a watchdog's line as a text."""
        self._show(step, f"warning/{watchdog}", line)

    def _show(self, step: int, tag: str, markdown: str) -> None:
        text = self._tensor(dtype=self._string, string_val=[markdown.encode()])
        value = self._summary.Value(tag=tag, metadata=self._text, tensor=text)
        self._add(step=step, summary=self._summary(value=[value]))

    def _add(self, **fields: Any) -> None:
        with keeping(self._path):
            self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with keeping(self._path):
            self._writer.close()


class WandB:
    """A Weights & Biases run. A run that continues goes on in the same one, whose id is in the workdir."""

    def __init__(self, workdir: pathlib.Path, arguments: dict[str, Any], resume_step: int | None):
        """Starts the run with arguments of `wandb.init`, or goes on in it.

        Raises:
          UserError: the package is not installed, or does not start.
        """
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

    def write(self, step: int, stage: str, figures: Mapping[str, float]) -> None:
        """Writes figures, and the stage beside them."""
        self._run.log({**figures, "stage": stage}, step=step)

    def stage(self, step: int, stage: str, number: int, begins: bool) -> None:
        """Does nothing: the stage stands beside the figures."""

    def sample(self, step: int, stage: str, sample: Sample) -> None:
        """Does nothing: texts stay on this machine."""

    def warn(self, step: int, watchdog: str, line: str) -> None:
        """Does nothing: W&B makes its own alerts from the figures."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def _verbatim(text: str) -> str:
    """The text as Markdown that shows it as it is: a block between fences longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
