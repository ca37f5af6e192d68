"""Suites `known` and `weak`: a teacher whose likelihoods are exact, so that what an arm does can be computed.

The teacher is a decoder of 2 M parameters that learned the demo's 3,000 answers, read at temperature 0.7: its export is
an exact model at temperature 1. It answers every training prompt ten times. The student has one layer and 0.3 M
parameters. phi is a model of the teacher's size, fitted to the same answers as the student: what a larger
discriminator learns from the same answers. Teacher, answers and phi are the same for all seeds. A seed is that of the
student's weights, its fit and the arms.

In `weak` the student has half the width. All networks have one layer, which learns the demo's fixed form sooner: phi is
meant to be clearly better than the student.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from benchmarks.evidence import answers, networks, runs
from benchmarks.evidence.arms import RECIPE, Game, Scene
from benchmarks.evidence.measure import Bench, Settings
from benchmarks.evidence.networks import Data, Fit, Fitting, Shape
from benchmarks.evidence.runs import Cost
from benchmarks.evidence.suite import Options, Suite
from gadjax.config.shipped import demo_assets
from gadjax.errors import UserError

PHI_SEED = 1000  # that of no student


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All sizes of the suite.

    Attributes:
      temperature: at which the teacher is read.
      limit: tokens of an answer, at most.
      prompts: training prompts that the teacher answers, 0 for all; `heldout_prompts` the same.
      answers: of the teacher to each training prompt.
    """

    teacher: Shape
    teacher_fit: Fit
    student: Shape
    student_fit: Fit
    phi: Shape
    phi_fit: Fit
    game: Game
    settings: Settings
    limit: int = 64
    prompts: int = 0
    heldout_prompts: int = 0
    answers: int = 10
    temperature: float = 0.7


FULL = Sizes(
    teacher=Shape(3, 192),
    teacher_fit=Fit(700, 2e-3, batch=32),
    student=Shape(1, 64),
    student_fit=Fit(1500, 3e-3, finish_steps=300, every=300),
    phi=Shape(3, 192),
    phi_fit=Fit(700, 2e-3, finish_steps=200),
    game=Game(updates=50, every=25),
    settings=Settings(),
)
WEAK = Sizes(
    teacher=Shape(1, 256),
    teacher_fit=Fit(500, 2e-3, batch=32, finish_steps=100, finish_rate=2e-4, every=50),
    student=Shape(1, 32),
    student_fit=Fit(2000, 5e-3, finish_steps=400, finish_rate=5e-4, every=200),
    phi=Shape(1, 256),
    phi_fit=Fit(1000, 2e-3, finish_steps=300),
    game=Game(updates=50, every=25),
    settings=Settings(),
)
QUICK = Sizes(
    teacher=Shape(1, 64),
    teacher_fit=Fit(60, 5e-3, batch=32, every=60),
    limit=32,
    prompts=48,
    heldout_prompts=16,
    answers=2,
    student=Shape(1, 32),
    student_fit=Fit(20, 5e-3, batch=16, every=20),
    phi=Shape(1, 64),
    phi_fit=Fit(20, 5e-3, batch=16, every=20),
    game=Game(updates=2, every=1, prompts=8, samples=2, discriminator_steps=1),
    settings=Settings(samples=1, temperatures=(0.7, 1.0), epochs=1),
)


class Known(Suite):
    """The suite in a folder."""

    arms = ("seqkd", "control", "oracle-sequence", "oracle-token", "gad-paper", RECIPE)
    full: ClassVar[Sizes] = FULL

    def __init__(self, options: Options):
        self.folder, self.sizes = options.folder, QUICK if options.quick else self.full
        self.teacher = self.folder / "teacher"
        self.data = Data(self.folder / "train.parquet", self.folder / "heldout.parquet", self.sizes.limit)

    def share(self) -> None:
        self._make_teacher()
        for name in ("student", "phi"):
            networks.write_shape(getattr(self.sizes, name), self.folder / "shapes" / name)

    def networks(self, seed: int) -> Mapping[str, Fitting]:
        return {
            "phi": self._fitting("phi", self.sizes.phi_fit, PHI_SEED, "phi"),
            "student": self._fitting("student", self.sizes.student_fit, seed, f"student-{seed}"),
        }

    def scene(self, seed: int, costs: Mapping[str, Cost]) -> Scene:
        return Scene(
            folder=self.folder,
            seed=seed,
            start=self.folder / f"student-{seed}",
            seqkd=self.sizes.student_fit,
            data=self.data,
            game=self.sizes.game,
            phi=self.folder / "phi",
            phi_cost=costs["phi"],
            teacher=self.teacher,
        )

    def bench(self, seed: int) -> Bench:
        del seed
        return Bench(self.data, self.sizes.settings, self.folder / "phi", self.teacher)

    def _fitting(self, shape: str, how: Fit, seed: int, name: str) -> Fitting:
        return Fitting(self.folder / "shapes" / shape, self.data, how, seed, self.folder / name, random=True)

    def _make_teacher(self) -> None:
        """The teacher and its answers."""
        sizes = self.sizes
        assets = demo_assets()
        demo = Data(assets / "train.parquet", assets / "heldout.parquet", sizes.limit)
        there = runs.read_json(self.teacher / "config.json")
        if there is None:
            empty = networks.write_shape(sizes.teacher, self.folder / "shapes" / "teacher")
            learnt = self.folder / "teacher-at-1"
            Fitting(empty, demo, sizes.teacher_fit, 0, learnt, random=True).fit()
            networks.at_temperature(learnt, sizes.temperature, self.teacher)
        elif (there["num_hidden_layers"], there["hidden_size"]) != dataclasses.astuple(sizes.teacher):
            raise UserError(f"--out={self.folder} holds the teacher of another suite: give each suite its own folder")
        parts = [(demo.train, sizes.prompts, sizes.answers, self.data.train)]
        parts += [(demo.heldout, sizes.heldout_prompts, 1, self.data.heldout)]
        for seed, (file, limit, count, out) in enumerate(parts):
            chats = answers.prompts_of(file, limit)
            answers.draw(self.teacher, chats, count * len(chats), sizes.limit, seed, out)


class Weak(Known):
    """The suite with a weaker student."""

    full = WEAK
