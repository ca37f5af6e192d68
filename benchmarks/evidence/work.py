"""A suite's work as tasks, and the rows of results that they leave."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.evidence import runs, table
from benchmarks.evidence.arms import Scene, make_arm
from benchmarks.evidence.best_of import has_measured_best_of, measure_best_of
from benchmarks.evidence.jobs import Task
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.runs import Arm
from benchmarks.evidence.suite import Suite
from benchmarks.evidence.table import Row
from benchmarks.harness import report
from benchmarks.harness.command import progress


class Work:
    """Networks to fit, students to measure, arms to run and measure, with each of some seeds.

    `suite.share` must have been called before a task is done.

    Attributes:
      tasks: in an order in which none needs a later one.
    """

    def __init__(
        self, suite: Suite, names: Sequence[str], seeds: Sequence[int], folder: pathlib.Path, best_of: int = 0
    ):
        """
        Args:
          suite: whose work it is.
          names: of the arms.
          seeds: of the arms; classifiers of the measurements start from a model of the first.
          folder: of the results.
          best_of: draws among which an arm's discriminator chooses; 0 leaves that out.
        """
        self._best_of = best_of
        self._suite, self._names, self._seeds, self._folder = suite, names, seeds, folder
        self._scene = functools.cache(suite.prepare)
        self._rows: dict[str, list[Row]] = {}  # by the task's name, as the next
        self._readers: dict[str, Callable[[], list[Row]]] = {}
        self.tasks = list({task.name: task for task in self._all()}.values())

    @property
    def networks(self) -> list[Task]:
        """The tasks that fit networks, which the arms start from."""
        fitted = {name for seed in self._seeds for name in self._needs(seed)}
        return [task for task in self.tasks if task.name in fitted]

    @property
    def rows(self) -> list[Row]:
        """A row for each point along each run that is done, in the order of the tasks."""
        return [row for task in self.tasks for row in self._rows.get(task.name, [])]

    def ended(self, name: str) -> None:
        """Reads what a task has left, and writes results.json anew: a run that is stopped leaves what it has."""
        if name not in self._readers:
            return
        if name not in self._rows:  # another process did the task
            self._readers[name]()
        for row in self._rows[name]:
            progress(table.shown(row))
        rows = self.rows
        found = {"rows": rows, "differences": table.differences(rows), "conclusions": self._suite.conclude(rows)[1]}
        report.write(self._folder / "results.json", found)

    def _all(self) -> Iterator[Task]:
        """The tasks, seed by seed; a network that several seeds share is there several times."""
        of_bench = self._needs(self._seeds[0])
        for seed in self._seeds:
            for network in self._suite.networks(seed).values():
                yield Task(network.folder.name, network.fit, network.is_fitted)
            if seed == self._seeds[0]:
                self._readers["teacher"] = self._measure_teacher
                yield Task("teacher", self._measure_teacher, self._has_measured_teacher, of_bench)
            start, do, is_done = f"start-{seed}", self._measure_start, self._has_measured_start
            yield Task(start, partial(do, seed), partial(is_done, seed), tuple({*of_bench, *self._needs(seed)}))
            for name in self._names:
                self._readers[_name(name, seed)] = do = partial(self._run, name, seed)
                yield Task(_name(name, seed), do, partial(self._has_run, name, seed), (start,))

    def _needs(self, seed: int) -> tuple[str, ...]:
        """The tasks whose networks a seed needs."""
        return tuple(network.folder.name for network in self._suite.networks(seed).values())

    @functools.cached_property
    def _bench(self) -> Bench:
        return self._suite.bench(self._seeds[0])

    @property
    def _teacher(self) -> tuple[Scene, pathlib.Path]:
        """A scene with the teacher, and the file of its figures."""
        return self._scene(self._seeds[0]), self._folder / "teacher-measured.json"

    def _measure_teacher(self) -> list[Row]:
        """The teacher's own figures: of a fresh draw where the teacher is open, else of its answers."""
        scene, kept = self._teacher
        figures = self._bench.measure_model(scene.teacher, kept) if scene.teacher else self._bench.of_answers()
        self._rows["teacher"] = [{"arm": "teacher", "seed": None, "updates": 0, **figures}]
        return self._rows["teacher"]

    def _has_measured_teacher(self) -> bool:
        scene, kept = self._teacher
        return scene.teacher is None or self._bench.has_measured_model(scene.teacher, kept)

    def _measure_start(self, seed: int) -> None:
        if self._suite.measures_start or self._best_of:
            self._bench.measure_start(self._scene(seed).start)

    def _has_measured_start(self, seed: int) -> bool:
        needed = self._suite.measures_start or self._best_of
        return not needed or self._bench.has_measured_start(self._scene(seed).start)

    def _arm(self, name: str, seed: int) -> tuple[Arm, pathlib.Path]:
        """An arm and its workdir."""
        return make_arm(name, self._scene(seed), self._suite.own), self._folder / "arms" / _name(name, seed)

    def _run(self, name: str, seed: int) -> list[Row]:
        """Runs and measures an arm, as far as it is not done, and returns a row for each point along it."""
        arm, workdir = self._arm(name, seed)
        before = arm.preparation + arm.make()
        runs.train(arm.config, workdir)
        rows: list[Row] = []
        for updates, step in arm.points.items():
            cost = runs.cost(workdir, step) + runs.Cost(0.0, before.sampled_tokens)
            row = {"arm": name, "seed": seed, "updates": updates, "rivals": self._suite.rivals_of(arm)}
            row |= self._bench.measure_arm(arm, workdir, updates)
            row |= {"seconds": cost.seconds, "sampled_tokens": cost.sampled_tokens}
            rows.append(row | {"preparation_seconds": before.seconds})
        if self._best_of and (found := measure_best_of(self._bench, arm, workdir, self._best_of)):
            rows[-1]["best_of"] = found
        self._rows[_name(name, seed)] = rows
        return rows

    def _has_run(self, name: str, seed: int) -> bool:
        arm, workdir = self._arm(name, seed)
        if not (runs.is_finished(arm.config, workdir) and self._bench.has_measured_arm(arm, workdir)):
            return False
        return not self._best_of or has_measured_best_of(self._bench, arm, workdir, self._best_of)


def _name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"
