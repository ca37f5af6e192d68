"""Suite `demo`: does the game help the demo's student? The teacher's 3,000 answers are those of SmolLM2-135M-Instruct.

The student is that of configs/demo.py at the end of its SeqKD stage. Its arm `gad` is the rest of that config as it is.
With --teacher, the folder of SmolLM2-135M-Instruct, the teacher itself judges too. It has another tokenizer, so that
the divergences are estimates: p is computed on the student's text in the teacher's tokens, under the temperature and
the system prompt of the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from benchmarks.evidence import networks
from benchmarks.evidence.arms import KEPT, Game, Scene
from benchmarks.evidence.measure import Bench, Settings
from benchmarks.evidence.networks import Data, Fit, Fitting, Shape
from benchmarks.evidence.runs import Arm, Cost
from benchmarks.evidence.suite import Options, Suite
from benchmarks.evidence.text_teacher import TextTeacher
from gadjax.config import load_config
from gadjax.config.shipped import demo_assets

SYSTEM = "You write one short sentence in simple words for a small child."  # of the collection, as its temperature
TEMPERATURE = 0.5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All sizes of the suite beside those of configs/demo.py."""

    seqkd: Fit
    phi: Shape
    phi_fit: Fit
    game: Game
    settings: Settings


FULL = Sizes(
    seqkd=Fit(400, 1e-3, batch=16),
    phi=Shape(4, 256),
    phi_fit=Fit(500, 1e-3, batch=32),
    game=Game(updates=60, every=30, samples=4, discriminator_steps=30),
    settings=Settings(),
)
QUICK = Sizes(
    seqkd=Fit(4, 1e-3, batch=8, every=4),
    phi=Shape(1, 32),
    phi_fit=Fit(4, 1e-3, batch=8, every=4),
    game=Game(updates=2, every=1, prompts=8, samples=2, discriminator_steps=1),
    settings=Settings(prompts=16, samples=1, temperatures=(1.0,), epochs=1),
)


def gad(scene: Scene) -> Arm:
    """The demo's stages warmup and gad, as configs/demo.py has them but for the lengths that the arms share."""
    config, game = load_config("demo"), scene.game
    config.student, config.random_init, config.seed = str(scene.start), False, scene.seed
    config.stages = ("warmup", "gad")
    config.gad.steps, config.batch_size, config.rollout.num_samples = game.updates, game.prompts, game.samples
    config.data.heldout, config.eval_every, config.evaluation.two_sample_folds = "", 0, 0
    before = config.warmup.steps = min(config.warmup.steps, game.updates)
    config.checkpoint.every, config.checkpoint.keep = game.every, KEPT
    points = {updates: before + updates for updates in (0, game.every, game.updates)}
    return Arm("gad", config, points, scene.start)


class Demo(Suite):
    """The suite in a folder."""

    arms = ("seqkd", "control", "gad", "gad-paper", "phi-frozen-token", "phi-bt-token", "soda", "seqkd-on-phi")
    own = {"gad": gad}  # noqa: RUF012 (the base class declares it)

    def __init__(self, options: Options):
        self.folder, self.sizes = options.folder, QUICK if options.quick else FULL
        self.text_teacher = TextTeacher(options.teacher, TEMPERATURE, SYSTEM) if options.teacher else None
        assets = demo_assets()
        self.data = Data(assets / "train.parquet", assets / "heldout.parquet", 64)

    def share(self) -> None:
        networks.write_shape(self.sizes.phi, self.folder / "shapes" / "phi")

    def networks(self, seed: int) -> Mapping[str, Fitting]:
        empty, sizes = self.folder / "shapes" / "phi", self.sizes
        student, phi = self.folder / f"student-{seed}", self.folder / f"phi-{seed}"
        return {
            "student": Fitting(demo_assets(), self.data, sizes.seqkd, seed, student, random=True),
            "phi": Fitting(empty, self.data, sizes.phi_fit, seed, phi, random=True),
        }

    def scene(self, seed: int, costs: Mapping[str, Cost]) -> Scene:
        sizes, start, phi = self.sizes, self.folder / f"student-{seed}", self.folder / f"phi-{seed}"
        return Scene(self.folder, seed, start, sizes.seqkd, self.data, sizes.game, phi, costs["phi"])

    def bench(self, seed: int) -> Bench:
        base = self.folder / f"student-{seed}"
        return Bench(self.data, self.sizes.settings, base, text_teacher=self.text_teacher)
