"""A run's checkpoint, read back: where the run stood, and its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gadjax.distill.state import GadState
from gadjax.errors import UserError, first_line
from gadjax.models.model import Params
from gadjax.parallel import processes
from gadjax.setup.blueprint import abstract_state
from gadjax.setup.prepare import Setup
from gadjax.trainer.offload import Offload
from gadjax.trainer.replay import Groups, Replay
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.storage import is_damage


@dataclasses.dataclass
class Position:
    """Where a run stands."""

    stage: str  # the stage being trained, or the last one finished
    stage_step: int  # its steps done
    step: int  # steps done over all stages


def saved_networks(state: GadState) -> dict[str, Any]:
    """The part of a state that a checkpoint holds. The student's files hold the rest, the base of adapters."""
    networks = {name: getattr(state, name) for name in ("generator", "discriminator", "reference")}
    return networks | ({} if state.statistics is None else {"statistics": state.statistics})


def restore_newest(
    setup: Setup,
    checkpoints: Checkpoints,
    saved: list[int],
    replay: Replay,
    *,
    base: Params | None,
    say: Callable[[str], None],
) -> tuple[Position, GadState]:
    """The position and the state of the newest checkpoint that is whole. Damaged ones after it are set aside.

    Args:
      setup: the run.
      checkpoints: its checkpoints.
      saved: their steps, ascending.
      replay: gets the replayed groups of the checkpoint.
      base: what the trained parameters are adapters of; None where everything is trained.
      say: shows a warning for each damaged checkpoint.

    Raises:
      UserError: no checkpoint can be read; or one is damaged, and several processes train.
    """
    damaged: dict[int, BaseException] = {}
    for step in reversed(saved):
        try:
            found = _restore(setup, checkpoints, step, replay, base, say)
        except Exception as error:  # Orbax has no narrower class for arrays that cannot be read
            if not is_damage(error):
                raise
            if processes.count() > 1:  # others may find nothing wrong
                raise UserError(
                    f"{checkpoints.directory / str(step)} is damaged ({first_line(error)}): rename this folder, and "
                    "the same command goes on from the checkpoint before"
                ) from error
            damaged[step] = error
            continue
        for other, damage in damaged.items():
            aside = checkpoints.set_aside(other)
            say(f"warning: the checkpoint of step {other} is damaged ({first_line(damage)}): {aside}")
        return found
    newest = saved[-1]
    raise UserError(
        f"{checkpoints.directory}: no checkpoint can be read; the newest, of step {newest}, fails with: "
        f"{first_line(damaged[newest])}. Restore the folder from a copy, or use another --workdir"
    ) from damaged[newest]


def _restore(
    setup: Setup, checkpoints: Checkpoints, step: int, replay: Replay, base: Params | None, say: Callable[[str], None]
) -> tuple[Position, GadState]:
    progress = checkpoints.progress(step)
    position = Position(progress["stage"], progress["stage_step"], step)
    like = Offload.of(setup.config).arrange(abstract_state(setup, position.stage), "rollout")
    state = GadState(**checkpoints.state(step, saved_networks(like)), base=base)
    if replay.groups and progress["replay_added"]:
        if not (arrays := checkpoints.replay(step)):
            raise ValueError("its replayed groups are gone")
        if _replay_fits(setup, replay, arrays):
            replay.arrays, replay.added = arrays, progress["replay_added"]
        else:  # --force, with other limits or data
            say("warning: the replayed groups have other sizes than this run's: replay starts empty")
    return position, state


def _replay_fits(setup: Setup, replay: Replay, groups: Groups) -> bool:
    """Whether saved groups have the sizes of this run's groups."""
    config, train = setup.config, setup.train
    sizes = {
        "tokens": (config.rollout.num_samples, config.data.max_response_length),
        "prompt": (train.prompt_width,),
        "teacher": (train.response_width,),
    }
    return all(groups[name].shape == (replay.groups, *size) for name, size in sizes.items())
