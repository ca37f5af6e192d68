"""What a user may add to a run in Python: a reward, a loss for the discriminator, and callbacks (docs/python.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gadjax.data.chats import Messages
from gadjax.distill.losses import PairLoss
from gadjax.errors import UserError

# (chats, answers, scores) -> the reward of each answer.
Reward = Callable[[list[Messages], list[str], np.ndarray], Any]


class StepDone(NamedTuple):
    """What a callback is told after a step.

    Attributes:
      stage: "seqkd", "soda", "warmup" or "gad".
      step: steps done over all stages.
      stage_step: steps done in this stage.
      stage_steps: steps that the stage has.
      metrics: the figures of the step, by the names that they have in metrics.jsonl.
      heldout: the figures on held-out prompts, if they were measured after this step; else empty.
      stop: call it to save this step and end the run, which the same call of `gadjax.train` continues.
    """

    stage: str
    step: int
    stage_step: int
    stage_steps: int
    metrics: Mapping[str, float]
    heldout: Mapping[str, float]
    stop: Callable[[], None]


Callback = Callable[[StepDone], Any]


@dataclasses.dataclass(frozen=True)
class Extensions:
    """What a user adds to a run.

    Attributes:
      reward: gives the reward of each sample in stage gad, in place of the discriminator's score.
      discriminator_loss: the loss of each pair of a teacher's answer and a sample, in place of
        `config.discriminator.loss`.
      callbacks: called one after the other after each step, in the first process.
    """

    reward: Reward | None = None
    discriminator_loss: PairLoss | None = None
    callbacks: tuple[Callback, ...] = ()

    def names(self) -> dict[str, str]:
        """The names of the functions that decide what is learned. They identify a run beside its config."""
        functions = {"reward": self.reward, "discriminator_loss": self.discriminator_loss}
        return {name: _name(function) for name, function in functions.items() if function is not None}


NO_EXTENSIONS = Extensions()


def check_extensions(extensions: Extensions, config: ConfigDict) -> None:
    """Raises a `UserError` if something is no function, or if the config leaves a reward of the user's no place."""
    named: dict[str, Any] = {"reward": extensions.reward, "discriminator_loss": extensions.discriminator_loss}
    named |= {f"callbacks[{index}]": callback for index, callback in enumerate(extensions.callbacks)}
    for name, function in named.items():
        if function is not None and not callable(function):
            raise UserError(f"{name} is {function!r}: it must be a function")
    if extensions.discriminator_loss is not None:
        _check_loss(extensions.discriminator_loss, config)
    if extensions.reward is None:
        return
    if "gad" not in config.stages:
        raise UserError("reward is used in stage gad, which config.stages leaves out: add it, or give no reward")
    gives = "reward gives each answer one number"
    if config.gad.credit != "sequence":
        raise UserError(f"{gives}, and config.gad.credit is {config.gad.credit}: set it to sequence")
    if config.discriminator.kind != "score":
        raise UserError(f"{gives}, and config.discriminator.kind is {config.discriminator.kind}: set it to score")
    if config.gad.reward != "raw":
        raise UserError(f"{gives}, and config.gad.reward is {config.gad.reward}, of D's scores: set it to raw")
    if config.gad.demonstrations and not config.gad.demonstration_reward:
        raise UserError(
            f"{gives}, and none to the teacher's answers that config.gad.demonstrations adds: set "
            "config.gad.demonstration_reward"
        )


def _check_loss(loss: PairLoss, config: ConfigDict) -> None:
    """Refuses a loss that nothing uses, or that does not give one number a pair."""
    if not any(stage in config.stages and config[stage].train_discriminator for stage in ("warmup", "gad")):
        raise UserError(
            "discriminator_loss is given, but no stage trains a discriminator on pairs: add warmup or gad to "
            "config.stages, with train_discriminator on"
        )
    teacher, student = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2,), (2, 3)))
    found = jax.eval_shape(loss, teacher, student)
    if getattr(found, "shape", None) != student.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(
            f"discriminator_loss returned {found} for scores [2] of the teacher's answers and [2, 3] of the samples: "
            "it must return a float for each pair, [2, 3]; teacher[:, None] - student has this shape"
        )


def rewards_of(reward: Reward, chats: list[Messages], answers: list[str], scores: np.ndarray) -> np.ndarray:
    """The user's reward of each answer, checked: float32 [answers].

    Args:
      reward: the user's function.
      chats: the prompt of each answer, as messages.
      answers: the texts of the samples.
      scores: float32 [answers], what the discriminator says of each.

    Raises:
      UserError: the function returned something other than one finite number for each answer.
    """
    given = reward(chats, answers, scores)
    try:
        values = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"reward returned {type(given).__name__}: it must return one number for each answer") from None
    if values.shape != (len(answers),):
        raise UserError(
            f"reward returned an array of shape {values.shape} for {len(answers)} answers: it must return one number "
            "for each answer"
        )
    if not np.all(np.isfinite(values)):
        first = int(np.argmin(np.isfinite(values)))
        raise UserError(f"reward returned {values[first]} for the answer {answers[first]!r}: it must be finite")
    return values


def _name(function: Any) -> str:
    """A name of a function that stays the same from run to run, such as "mine.brevity"."""
    plain = getattr(function, "func", function)  # of functools.partial
    return f"{plain.__module__}.{getattr(plain, '__qualname__', type(plain).__qualname__)}"
