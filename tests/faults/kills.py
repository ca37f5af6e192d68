"""Runs that are killed in phases that their log tells of, and started again until they reach their end."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Any, NamedTuple

PHASES = ("rollout", "update", "save", "export")
OTHERS = ("start", "measurement")
NONE = "between"  # of the phases
_PATIENCE = 240  # seconds without an end or a line in the log
_REACH = 4  # steps from where a run goes on to where it is killed next, at most


class Moment(NamedTuple):
    """Something that a process begins and ends."""

    name: str  # "update:generator" is of the phase "update"
    step: int

    @property
    def phase(self) -> str:
        return self.name.partition(":")[0]


@dataclasses.dataclass
class Process:
    """What the log says of one."""

    open: dict[Moment, float] = dataclasses.field(default_factory=dict)  # with the times of their begins, in order
    seconds: dict[Moment, float] = dataclasses.field(default_factory=dict)  # of those that ended
    rows: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # of the file, of each step


def read_log(log: pathlib.Path) -> dict[int, Process]:
    """The processes by their number, in order."""
    processes: dict[int, Process] = collections.defaultdict(Process)
    for line in log.read_text().splitlines():
        number, kind, *words = line.split()
        process = processes[int(number)]
        if kind == "rows":
            process.rows[int(words[0])] = [int(row) for row in words[1].split(",")]
        else:
            moment, when = Moment(words[0], int(words[1])), float(words[2])
            if kind == "begin":
                process.open[moment] = when
            else:
                process.seconds[moment] = when - process.open.pop(moment)
    return processes


class Server:
    """`logged_run`, which starts one process at a time. A context manager."""

    def __init__(self, repo: pathlib.Path, cache: pathlib.Path):
        """`cache`: of compiled programs, which are those of `conftest.quick_compile`."""
        environment = os.environ | {
            "PYTHONPATH": str(repo),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "TRANSFORMERS_VERBOSITY": "error",  # it has advice where torch is absent
        }
        command = [sys.executable, "-m", "tests.faults.logged_run"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # which ends it, once its process has ended
        self._process.wait()
        self._process.stdout.close()

    def start(self, arguments: list[str]) -> int:
        """The process's number. Its status is asked for before the next one starts."""
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        return int(self._process.stdout.readline())

    def has_ended(self) -> bool:
        """Whether the process has."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def status(self) -> int:
        """Of the process, which has ended or will soon; negative for a signal."""
        return int(self._process.stdout.readline())


class Run:
    """A run in a folder of its own, which is killed again and again. What holds after every kill is asserted here."""

    def __init__(self, config: Any, folder: pathlib.Path, server: Server):
        folder.mkdir(parents=True)
        self.workdir, self.log, self._output = folder / "run", folder / "log", folder / "output"
        self.log.touch()
        file = folder / "config.py"
        get_config = f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
        file.write_text(f"from ml_collections import ConfigDict\n\n\n{get_config}")
        self._arguments = [str(self.log), str(self._output), f"--config={file}", f"--workdir={self.workdir}"]
        self._server = server

    def finish(self) -> None:
        """Goes on to the end."""
        assert self.kill(None, 0) is None

    def kill(self, target: Moment | None, delay: float) -> str | None:
        """Goes on, and ends by SIGKILL `delay` seconds after the target's begin.

        Returns:
          The phase that it was in then, by the log: the target's, where that was not over. None for a run that reached
          its end before.
        """
        saved, number = self.saved(), self._server.start(self._arguments)
        try:
            if self._wait(number, target):
                time.sleep(delay)
        finally:
            if not self._server.has_ended():  # else the number may be another process's by now
                os.kill(number, signal.SIGKILL)
            status = self._server.status()
        logged = read_log(self.log)[number]
        if logged.rows:  # on from the newest checkpoint: nothing that was saved is lost, and no step left out
            assert list(logged.rows) == list(range(saved + 1, saved + 1 + len(logged.rows))), self._last_words()
        if status != -signal.SIGKILL:
            assert status == 0, self._last_words()
            return None
        phases = [m.phase for m in logged.open if m.phase != "save" or m.step > self.saved()]
        if target is not None and target in logged.open and target.phase in phases:
            return target.phase
        return phases[-1] if phases else NONE

    def saved(self) -> int:
        """Step of the newest whole checkpoint, 0 for none."""
        return max((int(path.name) for path in self.workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)

    def rows(self) -> dict[int, list[int]]:
        """Of every step: what each process that trained it saw, asserted to be the same."""
        seen: dict[int, list[int]] = {}
        for process in read_log(self.log).values():
            for step, rows in process.rows.items():
                assert seen.setdefault(step, rows) == rows, step
        return seen

    def _wait(self, number: int, target: Moment | None) -> bool:
        """Whether the log tells of the target's begin; else the process has ended."""
        begin = target and f"\n{number} begin {target.name} {target.step} ".encode()
        heard, size = time.monotonic(), -1
        while not self._server.has_ended():
            if (now := self.log.stat().st_size) != size:
                heard, size = time.monotonic(), now
                if begin and begin in b"\n" + self.log.read_bytes():
                    return True
            assert time.monotonic() - heard < _PATIENCE, f"hung: {self._last_words()}"
            time.sleep(0.001)
        return False

    def _last_words(self) -> str:
        return f"{self._output.read_text()[-3000:]}\n{self.log.read_text()[-1000:]}"


def choose(
    timed: dict[Moment, float], phases: Collection[str], saved: int, rng: random.Random
) -> tuple[Moment, float] | None:
    """Where to kill a run next, at random: one of the phases, one of its moments soon and a part of the time it takes.

    Args:
      timed: what the uninterrupted run did, and how long it took.
      saved: the step that the run goes on from.

    Returns:
      The moment and the seconds after its begin; None where none is left.
    """
    last, soon = max(moment.step for moment in timed), range(saved + 1, saved + 1 + _REACH)
    left = [m for m in timed if m.phase in phases and (m.step in soon or m.step == saved == 0)]
    if "start" in phases and saved < last:
        left += [m for m in timed if m.phase == "start"]
    if "export" in phases and (saved == last or not left):
        left += [m for m in timed if m.phase == "export"]
    if not left:
        return None
    phase = rng.choice(sorted({moment.phase for moment in left}))
    moment = rng.choice(sorted({moment for moment in left if moment.phase == phase}))
    return moment, rng.uniform(0, timed[moment])
