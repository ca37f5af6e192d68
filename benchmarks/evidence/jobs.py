"""Tasks, one after the other in this process, or several at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType
from typing import NoReturn

from benchmarks.harness.command import progress
from gadjax.errors import Stopped, UserError, first_line

_PAUSE = 0.2  # seconds between two looks at the processes
_GRACE = 60.0  # seconds that a process gets to save what it has


@dataclasses.dataclass(frozen=True)
class Task:
    """Work that leaves what it makes in files, so that any process can do it.

    Attributes:
      name: of this task alone.
      do: the work. What is there already is not made again.
      is_done: whether all of it is there.
      needs: names of tasks that come before it in a list, and must be done first.
    """

    name: str
    do: Callable[[], object]
    is_done: Callable[[], bool]
    needs: tuple[str, ...] = ()


def in_turn(tasks: Sequence[Task], ended: Callable[[str], object]) -> dict[str, str]:
    """Does tasks one after the other in this process. Returns what went wrong, by the task's name.

    Args:
      tasks: in an order in which none needs a later one. Those that do not need a task that failed are done all the
        same.
      ended: called with the name of each task that is done.
    """
    failed: dict[str, str] = {}
    for task in tasks:
        if task.name in failed:
            continue
        with _noted(task.name, tasks, failed):
            task.do()
            ended(task.name)
    return failed


def side_by_side(
    tasks: Sequence[Task],
    jobs: int,
    command: Callable[[str], Sequence[str]],
    environment: Mapping[str, str],
    logs: pathlib.Path,
    ended: Callable[[str], object],
) -> dict[str, str]:
    """Does tasks in processes, `jobs` at a time. Returns what went wrong, by the task's name.

    Each process runs on its share of the cores. If this function is left early, by Ctrl-C or SIGTERM, the processes
    are stopped first.

    Args:
      tasks, ended: as for `in_turn`.
      jobs: how many processes there are at once.
      command: the command line that does the task of a name.
      environment: of the processes.
      logs: the folder that gets what each process prints, as NAME.log.
    """
    waiting, done, failed = list(tasks), set[str](), dict[str, str]()
    running: list[_Process] = []
    free = list(shares(jobs, _cores()))
    with _stopped_by_sigterm(), _ended(running):
        while waiting or running:
            waiting = [task for task in waiting if task.name not in failed]
            ready = (task for task in waiting if done.issuperset(task.needs))
            task = next(ready, None) if free else None
            if task is not None:
                waiting.remove(task)
                with _noted(task.name, tasks, failed):
                    if task.is_done():
                        ended(task.name)
                        done.add(task.name)
                if task.name not in done and task.name not in failed:
                    log = logs / f"{task.name}.log"
                    progress(f"{task.name} begins; its output: {log}")
                    running.append(_Process(task.name, command(task.name), environment, log, free.pop(0)))
                continue
            time.sleep(_PAUSE)
            for process in [process for process in running if process.status() is not None]:
                running.remove(process)
                free.append(process.cores)
                if process.status():
                    _fail(process.name, process.complaint(), tasks, failed)
                    continue
                with _noted(process.name, tasks, failed):
                    ended(process.name)
                    done.add(process.name)
    return failed


def shares(jobs: int, cores: Collection[int]) -> list[frozenset[int]]:
    """The cores of each of `jobs` processes: equal parts, or one core each where there are fewer cores than jobs."""
    ordered = sorted(cores)
    if not ordered:
        return [frozenset()] * jobs
    return [frozenset(ordered[i::jobs] or [ordered[i % len(ordered)]]) for i in range(jobs)]


def _cores() -> set[int]:
    """The cores that this process may use; empty where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextlib.contextmanager
def _noted(name: str, tasks: Sequence[Task], failed: dict[str, str]) -> Iterator[None]:
    """An error in the block is that of one task: it is noted, and the block left. A stop on request is passed on."""
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        _fail(name, first_line(error), tasks, failed)


def _fail(name: str, reason: str, tasks: Sequence[Task], failed: dict[str, str]) -> None:
    """Notes that a task failed, and that all which need it do not begin."""
    failed[name] = reason
    progress(f"{name} failed: {reason}")
    for task in tasks:  # in their order, so that needs of needs are found too
        if task.name not in failed and (missing := failed.keys() & set(task.needs)):
            failed[task.name] = f"did not begin, because {min(missing)} failed"


class _Process:
    """A task's process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: pathlib.Path,
        cores: frozenset[int],
    ):
        self.name, self.log, self.cores = name, log, cores
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        if cores:
            # Python takes longer to start than this line: the threads that the process makes later inherit its cores.
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its status says why
                os.sched_setaffinity(self._process.pid, cores)

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def complaint(self) -> str:
        """Why it failed, in a line: the last one that it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1].removeprefix("error: ") if lines else "it printed nothing"
        return f"{said} (status {self.status()}; all of its output: {self.log})"

    def ask_to_stop(self) -> None:
        """Asks it to save what it has, and to end."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Waits for its end, which is forced after some seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _ended(running: list[_Process]) -> Iterator[None]:
    """When the block ends, none of the processes in the list runs any more."""
    try:
        yield
    finally:
        for process in running:
            process.ask_to_stop()
        deadline = time.monotonic() + _GRACE
        try:
            for process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
        except BaseException:  # a second Ctrl-C or SIGTERM
            for process in running:
                process.wait(0.0)
            raise


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """In the block SIGTERM raises `Stopped`, so that the processes are ended too."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped("stopped; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
