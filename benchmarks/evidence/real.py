"""Suite `real`: SmolLM2-135M-Instruct teaches a copy of itself that lacks some of its layers.

    python -m benchmarks.evidence --suite=real --size=cpu --teacher=DIR --train=PARQUET --heldout=PARQUET --out=DIR

`--size=gpu` and `--size=cpu` are those of docs/results.md: a student of 24 layers at 32 prompts x 8 samples, or one of
12 layers at 4 x 4. The teacher's answers were drawn at temperature 0.7 from its whole distribution and cut at 64
tokens. phi is a copy with more layers than the student, fitted to the same answers.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from benchmarks.evidence import networks
from benchmarks.evidence.arms import RECIPE, Game, Scene
from benchmarks.evidence.measure import Bench, Settings
from benchmarks.evidence.networks import Data, Fit, Fitting
from benchmarks.evidence.runs import Cost
from benchmarks.evidence.suite import Options, Suite
from benchmarks.prune_layers import prune
from gadjax.errors import UserError

TEMPERATURE = 0.7


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All sizes of the suite; `student` and `phi` are the layers that they keep of the teacher's."""

    student: str
    phi: str
    fit: Fit
    game: Game
    settings: Settings
    prompt_limit: int
    limit: int = 64


SIZES = {
    "cpu": Sizes(
        student="0-9,28,29",
        phi="0-17,28,29",
        fit=Fit(40, 2e-4, batch=4, every=20),
        game=Game(
            updates=30,
            every=15,
            prompts=4,
            samples=4,
            rate=5e-6,
            paper_rate=5e-6,
            paper_discriminator_rate=1e-5,
            discriminator_steps=15,
            likelihood_rate=1e-6,
        ),
        settings=Settings(prompts=64, samples=1, epochs=1, rate=5e-5),
        prompt_limit=96,
    ),
    "gpu": Sizes(
        student="0-13,20-29",
        phi="0-16,20-29",
        fit=Fit(120, 2e-4, batch=32, every=40),
        game=Game(
            updates=200,
            every=100,
            prompts=32,
            samples=8,
            rate=1e-5,
            paper_rate=3e-6,
            paper_discriminator_rate=1e-5,
            discriminator_steps=100,
            likelihood_rate=1e-6,
        ),
        settings=Settings(prompts=256, samples=1, folds=4, epochs=1, rate=5e-5),
        prompt_limit=240,
    ),
    "quick": Sizes(
        student="0",
        phi="0,1",
        fit=Fit(2, 2e-4, batch=8, every=2),
        game=Game(updates=2, every=1, prompts=8, samples=2, discriminator_steps=1),
        settings=Settings(prompts=8, samples=1, temperatures=(1.0,), epochs=1),
        prompt_limit=96,
        limit=16,
    ),
}


class Real(Suite):
    """The suite in a folder."""

    arms = ("seqkd", "control", "gad-paper", RECIPE, "soda")

    def __init__(self, options: Options):
        given = {name: getattr(options, name) for name in ("teacher", "train", "heldout")}
        if missing := [f"--{name}" for name, value in given.items() if value is None]:
            raise UserError(f"suite real needs {', '.join(missing)}: a folder and files of answers (docs/results.md)")
        self.folder, self.original = options.folder, given["teacher"]
        self.sizes = SIZES["quick" if options.quick else options.size]
        self.data = Data(given["train"], given["heldout"], self.sizes.limit, self.sizes.prompt_limit, keep_cut=True)
        self.teacher = self.folder / "teacher"

    def share(self) -> None:
        networks.at_temperature(self.original, TEMPERATURE, self.teacher)
        for role, layers in (("student", self.sizes.student), ("phi", self.sizes.phi)):
            if not (self._pruned(role) / "config.json").exists():
                prune(str(self.original), layers, self._pruned(role))

    def networks(self, seed: int) -> Mapping[str, Fitting]:
        return {
            role: Fitting(
                self._pruned(role), self.data, self.sizes.fit, seed, self.folder / f"{role}-{seed}", random=False
            )
            for role in ("student", "phi")
        }

    def scene(self, seed: int, costs: Mapping[str, Cost]) -> Scene:
        start, phi = (self.folder / f"{role}-{seed}" for role in ("student", "phi"))
        sizes = self.sizes
        return Scene(self.folder, seed, start, sizes.fit, self.data, sizes.game, phi, costs["phi"], self.teacher)

    def bench(self, seed: int) -> Bench:
        return Bench(self.data, self.sizes.settings, self._pruned("student"), self.teacher)

    def _pruned(self, role: str) -> pathlib.Path:
        """The folder of the teacher with some of its layers alone."""
        return self.folder / f"{role}-pruned"
