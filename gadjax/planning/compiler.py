"""Compiles the programs of plans: several at once, those alike once, and none whose figures are kept."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import jax

from gadjax.commands import host_memory
from gadjax.planning.estimate import CompiledProgram, Work, combine, count_work
from gadjax.planning.kept import KeptFigures
from gadjax.planning.measured import LoweredProgram, Measured, lower, measure
from gadjax.planning.program import RunProgram
from gadjax.planning.targets import Target

# Bytes for each program that is compiled at the same time. A process that planned qwen3b for v6e:2x2 had at most 3.4 GB
# with one at a time, and 4.0 GB with two.
_MEMORY = 4 * 2**30


class Compiler:
    """Compiles programs for one target.

    Attributes:
      asked: number of programs that were asked for.
      found: number of those whose figures an earlier plan had kept.
      lost: why figures could not be kept; empty if they were.
    """

    def __init__(
        self,
        target: Target,
        devices: list[jax.Device],
        *,
        folder: pathlib.Path | None = None,
        on_compile: Callable[[str], None] = lambda name: None,
        at_once: int | None = None,
    ):
        """
        Args:
          target, devices: to compile for.
          folder: where figures of compiled programs are kept for later plans. None keeps none.
          on_compile: called with the name of each program when its compilation starts, from any thread.
          at_once: the most programs that are compiled at the same time. None: as many as there are cores, if there is
            memory for them.
        """
        self.target, self.devices = target, devices
        self.asked = self.found = 0
        self.lost = ""
        self._kept = KeptFigures(folder, target, devices)
        self._on_compile = on_compile
        self._at_once = at_once or most_at_once()
        self._known: dict[str, Measured] = {}
        self._from_before: set[str] = set()  # of `_known`, what an earlier plan had kept

    def compile(self, programs: Iterable[RunProgram]) -> list[CompiledProgram]:
        """What the compiler says of programs. Each is traced and lowered, even if its figures are kept.

        Raises:
          UserError: a program does not compile, for another reason than the devices' memory.
        """
        jobs: dict[str, Future[None]] = {}
        work: list[tuple[str, Work]] = []
        stop = threading.Event()
        with ThreadPoolExecutor(self._at_once) as pool:
            try:
                for program in programs:
                    if stop.is_set():
                        break
                    traced = program.trace()
                    lowered = lower(program, traced, self.target.chip.platform)
                    key = self._kept.key(lowered)
                    if key not in jobs and not self._look_up(key):
                        jobs[key] = pool.submit(self._measure, key, lowered, stop)
                    self.asked += 1
                    self.found += key in self._from_before
                    work.append((key, count_work(program, traced)))
                wait(jobs.values())
            finally:  # also if the user interrupts
                stop.set()
        for job in jobs.values():
            job.result()  # raises the job's error
        return [combine(each, self._known[key], self.target.chip) for key, each in work]

    def _look_up(self, key: str) -> bool:
        """Whether the figures of this name are known, or can be read from their file."""
        if key not in self._known and (figures := self._kept.find(key)) is not None:
            self._known[key] = figures
            self._from_before.add(key)
        return key in self._known

    def _measure(self, key: str, program: LoweredProgram, stop: threading.Event) -> None:
        """Compiles a program, and keeps its figures at once: an error of another program loses nothing.

        Does nothing once `stop` is set, which an error of this program does.
        """
        if stop.is_set():
            return
        self._on_compile(program.program.name)
        try:
            self._known[key] = figures = measure(program)
        except BaseException:
            stop.set()
            raise
        try:
            self._kept.keep(key, figures)
        except OSError as error:  # a plan needs no cache
            self.lost = error.strerror or str(error)


def most_at_once() -> int:
    """The number of programs to compile at the same time: one for each core that this process has, if memory allows."""
    return max(1, min(len(os.sched_getaffinity(0)), host_memory() // _MEMORY))
