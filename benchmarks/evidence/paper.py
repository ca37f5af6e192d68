"""Suite `paper`: does what the paper reports point the same way here?

Its toy, GAD against SeqKD, and its ablations, each at the size of suite `known`, whose teacher and answers it uses. The
paper's measure is a judge's score. Ours is the reverse KL a response, which is known exactly here, and for the frozen
discriminator how far lengths are from the teacher's. `--out` may be the folder of suite `known`, whose models are then
not made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.evidence import toy
from benchmarks.evidence.arms import KEPT, Game, Scene
from benchmarks.evidence.known import Known
from benchmarks.evidence.networks import Fit, Fitting, config_of
from benchmarks.evidence.quality import Paired, paired
from benchmarks.evidence.runs import Arm, Cost
from benchmarks.evidence.suite import Options
from benchmarks.evidence.table import Row, by_seed, last_rows
from benchmarks.harness import report

TOY_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the paper reports: `arm` minus `other` in a figure is of this sign."""

    text: str
    arm: str
    other: str
    figure: str
    sign: int


CLAIMS = (
    Claim("GAD ends nearer to the teacher than SeqKD", "full", "more-seqkd", "reverse_kl_response", -1),
    Claim("without the generator's warmup GAD ends farther off", "no-g-warmup", "full", "reverse_kl_response", +1),
    Claim("without the discriminator's warmup GAD ends farther off", "no-d-warmup", "full", "reverse_kl_response", +1),
    Claim("cross entropy in place of Bradley-Terry ends farther off", "ce", "full", "reverse_kl_response", +1),
    Claim("a larger discriminator than the student ends farther off", "larger-d", "full", "reverse_kl_response", +1),
    Claim("with a frozen discriminator lengths run away", "frozen-d", "full", "length_gap", +1),
    Claim("with a frozen discriminator GAD ends farther off", "frozen-d", "full", "reverse_kl_response", +1),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All sizes of the suite beside those of suite `known`.

    Attributes:
      start: how the student is fitted before its warmup: not to the end, so that warmup has something to do.
      warmup, warmup_rate: steps of warmup, and the generator's rate in it.
      game: of stage gad.
    """

    start: Fit
    warmup: int
    warmup_rate: float
    game: Game


FULL = Sizes(Fit(150, 3e-3, every=150), 100, 1e-3, Game(updates=100, every=50))
QUICK = Sizes(
    Fit(10, 5e-3, batch=16, every=10), 2, 1e-3, Game(updates=2, every=1, prompts=8, samples=2, discriminator_steps=1)
)


def _full(scene: Scene, name: str, fields: dict[str, Any], sizes: Sizes) -> Arm:
    """The paper's stages, with some fields set."""
    game, config = scene.game, config_of(scene.start, scene.data, scene.seed)
    config.stages = ("warmup", "gad")
    config.batch_size, config.rollout.num_samples, config.rollout.temperature = game.prompts, game.samples, 1.0
    config.optimizer.clip_norm, config.optimizer.b2, config.eval_every = 1.0, 0.99, 0
    config.warmup.steps, config.warmup.discriminator_only_steps = sizes.warmup, 0
    config.warmup.generator_learning_rate = sizes.warmup_rate
    config.gad.steps, config.gad.generator_learning_rate = game.updates, game.paper_rate
    for stage in ("warmup", "gad"):
        config[stage].discriminator_learning_rate = game.paper_discriminator_rate
    config.checkpoint.every, config.checkpoint.keep = game.every, KEPT
    config.update_from_flattened_dict(fields)
    points = {updates: updates + sizes.warmup for updates in (0, game.updates)}
    return Arm(name, config, points, scene.start)


def _larger(scene: Scene, sizes: Sizes) -> Arm:
    arm = _full(scene, "larger-d", {"discriminator.init": str(scene.phi)}, sizes)
    return dataclasses.replace(arm, preparation=scene.phi_cost)


def _more_seqkd(scene: Scene, sizes: Sizes) -> Arm:
    """SeqKD for as many updates as warmup and gad make together."""
    arm = _full(scene, "more-seqkd", {}, sizes)
    steps = sizes.warmup + scene.game.updates
    arm.config.update_from_flattened_dict({"seqkd.steps": steps, "seqkd.generator_learning_rate": sizes.warmup_rate})
    arm.config.stages = ("seqkd",)
    arm.config.checkpoint.every = sizes.warmup  # the end is saved in any case
    return arm


_VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no-g-warmup": {"warmup.train_generator": False},
    "no-d-warmup": {"warmup.train_discriminator": False},
    "ce": {"discriminator.loss": "ce"},
    "frozen-d": {"gad.train_discriminator": False},
}


class Paper(Known):
    """The suite in a folder."""

    arms = (*_VARIANTS, "larger-d", "more-seqkd")
    rivals = ("full", "more-seqkd")
    measures_start = False

    def __init__(self, options: Options):
        super().__init__(options)
        self.paper_sizes = sizes = QUICK if options.quick else FULL
        self.toy_seeds = 1 if options.quick else TOY_SEEDS
        self._toy: list[tuple[toy.Spread, toy.Spread]] = []
        own: dict[str, Callable[[Scene], Arm]] = {
            name: partial(_full, name=name, fields=fields, sizes=sizes) for name, fields in _VARIANTS.items()
        }
        self.own = own | {"larger-d": partial(_larger, sizes=sizes), "more-seqkd": partial(_more_seqkd, sizes=sizes)}

    def networks(self, seed: int) -> Mapping[str, Fitting]:
        student = self._fitting("student", self.paper_sizes.start, seed, f"early-{seed}")
        return dict(super().networks(seed)) | {"student": student}

    def scene(self, seed: int, costs: Mapping[str, Cost]) -> Scene:
        start, sizes = self.folder / f"early-{seed}", self.paper_sizes
        return dataclasses.replace(super().scene(seed, costs), start=start, seqkd=sizes.start, game=sizes.game)

    def conclude(self, rows: Sequence[Row]) -> tuple[str, Any]:
        found = [*self._toy_claims(), *judge(CLAIMS, rows)]
        lines = [
            [row["claim"], row["figure"], "+" if row["sign"] > 0 else "-", f"{row['mean']:+.3f}", *_verdict(row)]
            for row in found
        ]
        columns = ["the paper", "figure", "its sign", "here", "interval", "same direction"]
        return f"The paper's claims (differences paired by seed)\n{report.table(columns, lines)}", found

    def _toy_claims(self) -> list[dict[str, Any]]:
        if not self._toy:
            self._toy = [(toy.gad(seed), toy.seqkd(seed)) for seed in range(self.toy_seeds)]
        text = "toy: GAD settles on one mode, SeqKD stands between them"
        found = []
        for figure, sign in (("off_mode", -1), ("reverse_kl", -1), ("forward_kl", +1)):
            sides = [{i: getattr(pair[k], figure) for i, pair in enumerate(self._toy)} for k in (0, 1)]
            found.append(_row(text, f"toy {figure}", sign, paired(*sides)))
        return found


def judge(claims: Sequence[Claim], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the rows say about each claim whose arms were measured: JSON objects."""
    last, found = [row | {"length_gap": _length_gap(row)} for row in last_rows(rows)], []
    for claim in claims:
        sides = [by_seed(last, arm, claim.figure) for arm in (claim.arm, claim.other)]
        if sides[0].keys() & sides[1].keys():
            text = f"{claim.text} ({claim.arm} - {claim.other})"
            found.append(_row(text, claim.figure, claim.sign, paired(*sides)))
    return found


def _row(claim: str, figure: str, sign: int, gap: Paired) -> dict[str, Any]:
    bounds = {name: None if value != value else value for name, value in (("low", gap.low), ("high", gap.high))}
    same = gap.mean * sign > 0
    return {
        "claim": claim,
        "figure": figure,
        "sign": sign,
        "mean": gap.mean,
        **bounds,
        "seeds": gap.seeds,
        "same": same,
    }


def _verdict(row: dict[str, Any]) -> tuple[str, str]:
    """The interval, and the answer: a direction whose interval holds 0 is not settled."""
    answer = "yes" if row["same"] else "no"
    if row["low"] is None:
        return "–", f"{answer}, one seed"
    open_ = row["low"] <= 0 <= row["high"]
    return f"{row['low']:+.3f} to {row['high']:+.3f}", f"{answer}, not settled" if open_ else answer


def _length_gap(row: Row) -> float | None:
    """How far lengths are from the teacher's, as a share of them."""
    ratio = row.get("length_ratio")
    return None if ratio is None else abs(ratio - 1.0)
