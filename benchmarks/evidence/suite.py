"""What a suite is: where its arms start, which there are, and what they are measured with; and how it runs."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.evidence import runs, table
from benchmarks.evidence.arms import CORE, Scene, make_arm
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.runs import Arm
from benchmarks.evidence.table import Row
from benchmarks.harness import report
from benchmarks.harness.command import progress


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says to a suite; None where a flag is not given.

    Attributes:
      folder: of the results.
      quick: tiny sizes, which show that it works and measure nothing.
      size: "cpu" or "gpu".
      teacher: the folder of an open teacher.
      train, heldout: its answers.
    """

    folder: pathlib.Path
    quick: bool = False
    size: str = "cpu"
    teacher: pathlib.Path | None = None
    train: pathlib.Path | None = None
    heldout: pathlib.Path | None = None


class Suite(abc.ABC):
    """A suite in its folder.

    Attributes:
      arms: the names of those that run unless others are asked for.
      own: arms that no other suite has, by name.
    """

    arms: ClassVar[Sequence[str]] = CORE
    own: ClassVar[Mapping[str, Callable[[Scene], Arm]]] = {}

    @abc.abstractmethod
    def __init__(self, options: Options):
        """Raises a `UserError` if the suite needs a flag that is not given."""

    @abc.abstractmethod
    def prepare(self, seed: int) -> Scene:
        """What the arms of a seed start from; makes what is missing of it."""

    @abc.abstractmethod
    def bench(self, seed: int) -> Bench:
        """What models are measured with, in whichever seed; fresh classifiers start from a model of `seed`."""

    def conclude(self, rows: Sequence[Row]) -> tuple[str, Any]:
        """A text for people to stand below the tables, and the same as JSON values."""
        del rows
        return "", None


def run(suite: Suite, names: Sequence[str], seeds: Sequence[int], folder: pathlib.Path) -> list[Row]:
    """Runs and measures every arm with every seed, and returns a row for each point along each run.

    results.json is written anew after each arm, so that a run that is stopped leaves what it has.
    """
    rows: list[Row] = []
    bench = None
    for seed in seeds:
        scene = suite.prepare(seed)
        if bench is None:
            bench = suite.bench(seed)
            rows += _reference(bench, scene, folder)
        for name in names:
            arm = make_arm(name, scene, suite.own)
            workdir = folder / "arms" / f"{name}-{seed}"
            runs.train(arm.config, workdir)
            for updates, step in arm.points.items():
                cost = runs.cost(workdir, step) + runs.Cost(0.0, arm.preparation.sampled_tokens)
                row = {"arm": name, "seed": seed, "updates": updates, "baseline": arm.baseline}
                row |= bench.measure_arm(arm, workdir, updates)
                row |= {"seconds": cost.seconds, "sampled_tokens": cost.sampled_tokens}
                rows.append(row | {"preparation_seconds": arm.preparation.seconds})
                progress(table.shown(rows[-1]))
            found = {"rows": rows, "differences": table.differences(rows), "conclusions": suite.conclude(rows)[1]}
            report.write(folder / "results.json", found)
    return rows


def _reference(bench: Bench, scene: Scene, folder: pathlib.Path) -> list[Row]:
    """The teacher's own figures: of a fresh draw where the teacher is open, else of its answers."""
    if scene.teacher is None:
        return [{"arm": "teacher", "seed": None, "updates": 0, **bench.of_answers()}]
    figures = bench.measure_model(scene.teacher, folder / "teacher-measured.json")
    return [{"arm": "teacher", "seed": None, "updates": 0, **figures}]
