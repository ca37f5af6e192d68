"""What a suite is: where its arms start, which there are, and what they are measured with."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.evidence.arms import CORE, Scene
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.networks import Fitting
from benchmarks.evidence.runs import Arm, Cost
from benchmarks.evidence.table import Row


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
      rivals: the arms that the others have to beat, and that are compared among themselves: a later one with earlier
        ones.
      measures_start: whether what arms start from is a point of their runs.
    """

    arms: ClassVar[Sequence[str]] = CORE
    own: ClassVar[Mapping[str, Callable[[Scene], Arm]]] = {}
    rivals: ClassVar[Sequence[str]] = ("control", "seqkd")
    measures_start: ClassVar[bool] = True

    @abc.abstractmethod
    def __init__(self, options: Options):
        """Raises a `UserError` if the suite needs a flag that is not given."""

    @abc.abstractmethod
    def share(self) -> None:
        """Makes what the networks of all seeds are made from, as far as it is missing."""

    @abc.abstractmethod
    def networks(self, seed: int) -> Mapping[str, Fitting]:
        """The networks that the arms of a seed need, by their role; none is made from another one.

        Networks with one folder are the same, which several seeds share.
        """

    @abc.abstractmethod
    def scene(self, seed: int, costs: Mapping[str, Cost]) -> Scene:
        """What the arms of a seed start from, given what each network of `networks` took."""

    def prepare(self, seed: int) -> Scene:
        """What the arms of a seed start from; makes what is missing of it."""
        self.share()
        return self.scene(seed, {role: network.fit() for role, network in self.networks(seed).items()})

    @abc.abstractmethod
    def bench(self, seed: int) -> Bench:
        """What models are measured with, in whichever seed; fresh classifiers start from a model of `seed`."""

    def rivals_of(self, arm: Arm) -> list[str]:
        """The arms that an arm is compared with: the one that it changes, and the suite's rivals."""
        before = self.rivals[: self.rivals.index(arm.name)] if arm.name in self.rivals else self.rivals
        return [*dict.fromkeys(filter(None, [arm.changes, *before]))]

    def conclude(self, rows: Sequence[Row]) -> tuple[str, Any]:
        """A text for people to stand below the tables, and the same as JSON values."""
        del rows
        return "", None
