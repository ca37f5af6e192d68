"""The arms of a suite: configs of `gadjax.train` that start from one trained student, at equal generator updates.

`make_arm` makes them by name. An arm that changes one option of another one is in `OPTIONS`, and is compared with that
one too.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from benchmarks.evidence import answers
from benchmarks.evidence.networks import Data, Fit, config_of
from benchmarks.evidence.runs import NOTHING, Arm, Cost
from gadjax.errors import UserError

KEPT = 1000  # checkpoints: all of them


@dataclasses.dataclass(frozen=True)
class Game:
    """Sizes and rates that the arms share.

    Attributes:
      updates: of the generator, in every arm.
      every: updates between measurements.
      prompts, samples: of a step.
      rate: the generator's learning rate, and that of the control.
      paper_rate, paper_discriminator_rate, discriminator_steps: of `gad-paper`, with its warmup of the discriminator.
      likelihood_rate: of a likelihood discriminator that goes on learning.
    """

    updates: int = 100
    every: int = 50
    prompts: int = 16
    samples: int = 8
    rate: float = 3e-4
    paper_rate: float = 1e-4
    paper_discriminator_rate: float = 3e-4
    discriminator_steps: int = 100
    likelihood_rate: float = 5e-5


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the arms of one seed start from.

    Attributes:
      folder: of the suite's results.
      seed: of the arms.
      start: the folder of the trained student.
      seqkd: how it was trained, which `seqkd` goes on with.
      data: the teacher's answers.
      game: sizes and rates.
      phi: the folder of a larger model of the teacher's answers, or None.
      phi_cost: what it took.
      teacher: the folder of the teacher, if its likelihoods are known and the tokenizer is the student's.
    """

    folder: pathlib.Path
    seed: int
    start: pathlib.Path
    seqkd: Fit
    data: Data
    game: Game
    phi: pathlib.Path | None = None
    phi_cost: Cost = NOTHING
    teacher: pathlib.Path | None = None


def _game(scene: Scene, fields: Mapping[str, Any]) -> ConfigDict:
    """A run of stage gad as all arms have it, with some fields set."""
    game, config = scene.game, config_of(scene.start, scene.data, scene.seed)
    config.stages = ("gad",)
    config.batch_size, config.rollout.num_samples, config.rollout.temperature = game.prompts, game.samples, 1.0
    config.optimizer.clip_norm, config.optimizer.b2, config.optimizer.weight_decay = 1.0, 0.99, 0.0
    config.gad.steps, config.gad.generator_learning_rate, config.gad.kl_coefficient = game.updates, game.rate, 0.0
    config.eval_every = 0
    config.checkpoint.every, config.checkpoint.keep = game.every, KEPT
    config.update_from_flattened_dict(fields)
    return config


def _points(scene: Scene, before: int = 0) -> dict[int, int]:
    """The updates at which an arm is measured, with the steps of its run, `before` of which come first."""
    game = scene.game
    measured = sorted({*range(0, game.updates, game.every), game.updates})
    return {updates: updates + before for updates in measured}


def _supervised(scene: Scene, name: str, batch: int, rate: float, **others: Any) -> Arm:
    config = _game(scene, {})
    config.stages = ("seqkd",)
    config.batch_size = batch
    config.seqkd.steps, config.seqkd.generator_learning_rate = scene.game.updates, rate
    return Arm(name, config, _points(scene), scene.start, **others)


def seqkd(scene: Scene) -> Arm:
    """SeqKD goes on as it ended, from fresh moments."""
    return _supervised(scene, "seqkd", scene.seqkd.batch, scene.seqkd.last_rate)


def control(scene: Scene) -> Arm:
    """Cross entropy at the game's learning rate, on as many prompts."""
    return _supervised(scene, "control", scene.game.prompts, scene.game.rate)


def seqkd_on_phi(scene: Scene) -> Arm:
    """SeqKD on as many answers of phi as the game samples."""
    game, phi = scene.game, _phi(scene)
    out = scene.folder / f"phi-answers-{scene.seed}.parquet"
    data, batch = scene.data, game.prompts * game.samples

    def make() -> Cost:
        return answers.draw(phi, answers.prompts_of(data.train), game.updates * batch, data.limit, scene.seed, out)

    scene = dataclasses.replace(scene, data=dataclasses.replace(data, train=out))
    return _supervised(scene, "seqkd-on-phi", batch, game.rate, preparation=scene.phi_cost, make=make)


def soda(scene: Scene) -> Arm:
    """Stage soda: no discriminator learns, and a prompt keeps the student's own answer."""
    config = _game(scene, {"soda.steps": scene.game.updates, "soda.generator_learning_rate": scene.game.rate})
    config.stages = ("soda",)
    return Arm("soda", config, _points(scene), scene.start)


def gad_paper(scene: Scene) -> Arm:
    """The paper's method: a scalar head on phi, sequence credit, after a warmup of the discriminator alone.

    Where there is no phi, the discriminator grows from the student.
    """
    game = scene.game
    rates = {"gad.generator_learning_rate": game.paper_rate}
    for stage in ("warmup", "gad"):
        rates[f"{stage}.discriminator_learning_rate"] = game.paper_discriminator_rate
    warmup = {"warmup.steps": game.discriminator_steps, "warmup.train_generator": False}
    config = _game(scene, {"discriminator.init": str(scene.phi or "generator"), **rates, **warmup})
    config.stages = ("warmup", "gad")
    points = _points(scene, game.discriminator_steps)
    return Arm("gad-paper", config, points, scene.start, preparation=scene.phi_cost)


def oracle_sequence(scene: Scene) -> Arm:
    """The teacher itself as the discriminator, one advantage a sequence."""
    return _likelihood(scene, "oracle-sequence", _teacher(scene), {}, NOTHING)


def oracle_token(scene: Scene) -> Arm:
    """The teacher itself as the discriminator, an advantage for each token."""
    return _likelihood(scene, "oracle-token", _teacher(scene), TOKEN, NOTHING)


def phi_frozen_token(scene: Scene) -> Arm:
    """A larger model of the teacher's answers as the discriminator, which does not learn."""
    return _likelihood(scene, "phi-frozen-token", _phi(scene), TOKEN, scene.phi_cost)


def phi_bt_token(scene: Scene) -> Arm:
    """The same, which goes on learning from pairs."""
    learns = {"gad.train_discriminator": True, "gad.discriminator_learning_rate": scene.game.likelihood_rate}
    return _likelihood(scene, "phi-bt-token", _phi(scene), TOKEN | learns, scene.phi_cost)


def bt_in_seqkd(scene: Scene) -> Arm:
    """`phi-bt-token` whose first half is SeqKD, in which phi goes on learning by cross entropy too."""
    arm, game = phi_bt_token(scene), scene.game
    half = max(1, game.updates // (2 * game.every)) * game.every  # a stage counts its own steps between checkpoints
    learns = {"seqkd.train_discriminator": True, "seqkd.discriminator_learning_rate": scene.game.likelihood_rate}
    lengths = {"seqkd.steps": half, "gad.steps": scene.game.updates - half}
    arm.config.stages = ("seqkd", "gad")
    arm.config.update_from_flattened_dict(learns | lengths | {"seqkd.generator_learning_rate": scene.game.rate})
    return dataclasses.replace(arm, name="bt-in-seqkd", changes="phi-bt-token")


SEQUENCE = {"gad.credit": "sequence", "gad.whitening": "group", "gad.reward_clip": 0.0}
TOKEN = {"gad.credit": "token", "gad.discount": 0.0, "gad.whitening": "batch", "gad.reward_clip": 4.0}


def _likelihood(scene: Scene, name: str, network: pathlib.Path, fields: Mapping[str, Any], cost: Cost) -> Arm:
    frozen = {"discriminator.kind": "likelihood", "discriminator.init": str(network), "gad.train_discriminator": False}
    config = _game(scene, frozen | {"gad.reward_baseline": "policy"} | fields)
    return Arm(name, config, _points(scene), scene.start, preparation=cost)


def _phi(scene: Scene) -> pathlib.Path:
    if scene.phi is None:
        raise UserError("this suite has no phi, the larger model of the teacher's answers")
    return scene.phi


def _teacher(scene: Scene) -> pathlib.Path:
    if scene.teacher is None:
        raise UserError("this suite has no teacher with known likelihoods in the student's tokens")
    return scene.teacher


_CORE: dict[str, Callable[[Scene], Arm]] = {
    "seqkd": seqkd,
    "control": control,
    "oracle-sequence": oracle_sequence,
    "oracle-token": oracle_token,
    "gad-paper": gad_paper,
    "phi-frozen-token": phi_frozen_token,
    "phi-bt-token": phi_bt_token,
    "soda": soda,
    "seqkd-on-phi": seqkd_on_phi,
}
_MORE: dict[str, Callable[[Scene], Arm]] = {"bt-in-seqkd": bt_in_seqkd}
CORE = tuple(_CORE)
RECIPE = "frozen-sft"  # the best so far (docs/results.md): what real models are tried with

# Each changes an arm in one respect: (the arm, the fields).
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # the paper's discriminator
    "paper-ce": ("gad-paper", {"discriminator.loss": "ce"}),
    "paper-pooling-mean": ("gad-paper", {"discriminator.pooling": "mean"}),
    "paper-from-generator": ("gad-paper", {"discriminator.init": "generator"}),
    "paper-random-d": ("gad-paper", {"discriminator.random_init": True}),
    "paper-rate": ("gad-paper", {"gad.generator_learning_rate": 3e-4}),
    "paper-updates-4": ("gad-paper", {"discriminator.updates_per_step": 4}),
    "paper-replay": ("gad-paper", {"discriminator.replay_size": 2048}),
    "paper-kl": ("gad-paper", {"gad.kl_coefficient": 0.1}),
    "paper-sft": ("gad-paper", {"gad.sft_coefficient": 1.0}),
    "paper-bounded": ("gad-paper", {"gad.reward": "bounded"}),
    "paper-whitening-batch": ("gad-paper", {"gad.whitening": "batch"}),
    "paper-whitening-running": ("gad-paper", {"gad.whitening": "running"}),
    "paper-length": ("gad-paper", {"gad.length_correction": True}),
    "paper-demonstrations": ("gad-paper", {"gad.demonstrations": 0.25}),
    # a likelihood discriminator that learns
    "bt-baseline-reference": ("phi-bt-token", {"discriminator.baseline": "reference"}),
    "bt-rate": ("phi-bt-token", {"gad.discriminator_learning_rate": 1e-5}),
    "bt-beta": ("phi-bt-token", {"discriminator.beta": 0.1}),
    "bt-sft": ("phi-bt-token", {"discriminator.sft_coefficient": 1.0}),
    "bt-replay": ("phi-bt-token", {"discriminator.replay_size": 2048}),
    # a frozen one
    "frozen-sequence": ("phi-frozen-token", SEQUENCE),
    "frozen-discount": ("phi-frozen-token", {"gad.discount": 0.9}),
    "frozen-baseline-reference": (
        "phi-frozen-token",
        {"gad.reward_baseline": "reference", "discriminator.baseline": "reference"},
    ),
    "frozen-bounded": ("frozen-sequence", {"gad.reward": "bounded"}),
    "frozen-whitening-running": ("phi-frozen-token", {"gad.whitening": "running"}),
    "frozen-no-clip": ("phi-frozen-token", {"gad.reward_clip": 0.0}),
    "frozen-length": ("frozen-sequence", {"gad.length_correction": True}),
    "frozen-demonstrations": ("phi-frozen-token", {"gad.demonstrations": 0.25}),
    "frozen-sft": ("phi-frozen-token", {"gad.sft_coefficient": 0.5}),
}


def check_arms(names: Iterable[str], own: Mapping[str, Callable[[Scene], Arm]]) -> None:
    """Raises a `UserError` if one of the names is of no arm; `own` are those of one suite alone."""
    known = [*_CORE, *own, *_MORE, *OPTIONS]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--arms: there is no arm {unknown[0]}: choose among {', '.join(known)}")


def make_arm(name: str, scene: Scene, own: Mapping[str, Callable[[Scene], Arm]] = MappingProxyType({})) -> Arm:
    """The arm of a name; `own` are those of one suite alone.

    Raises:
      UserError: there is no such arm, or the suite lacks what it needs.
    """
    check_arms([name], own)
    single = _CORE | _MORE | dict(own)
    if name in single:
        return single[name](scene)
    changed, fields = OPTIONS[name]
    arm = make_arm(changed, scene, own)
    arm.config.update_from_flattened_dict(fields)
    own_weights = arm.config.discriminator.init == "generator" or arm.config.discriminator.random_init
    cost = NOTHING if own_weights else arm.preparation
    return dataclasses.replace(arm, name=name, changes=changed, preparation=cost)
