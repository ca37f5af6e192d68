"""Traces of chosen steps by JAX's profiler, for XProf, TensorBoard's profile plugin or Perfetto."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from gadjax.errors import UserError


class Profile:
    """Traces the steps `first` to `last` of a run, counted as in metrics.jsonl, into one folder."""

    def __init__(self, directory: pathlib.Path, first: int, last: int):
        self.directory, self.first, self.last = directory, first, last
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A context manager around each step of the run. Where a step raises, the trace is written all the same."""
        if self.first <= number <= self.last and not self._tracing:
            jax.profiler.start_trace(self.directory)
            self._tracing = True
        try:
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                yield
        except BaseException:
            self.close()
            raise
        if number >= self.last:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being taken."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def parse_steps(text: str) -> tuple[int, int]:
    """The first and the last step, from 1, that a text such as `"12"` or `"10-12"` names.

    Raises:
      UserError: it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile={text} names no steps: give one, such as --profile=12, or a range, --profile=10-12")
    return first, last
