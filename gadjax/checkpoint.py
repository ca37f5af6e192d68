"""Checkpoints of a run: Orbax, asynchronous, whole or absent."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gadjax.errors import UserError

Progress = dict[str, Any]  # stage, stage_step, step, and what else must survive as JSON


class Checkpoints:
    """Saves and restores `(state, replay, progress)` under `workdir/checkpoints/STEP`; STEP counts over all stages."""

    def __init__(self, workdir: pathlib.Path, *, keep: int | None = None, keep_every: int = 0):
        """
        Args:
          workdir: of the run.
          keep: how many of the last checkpoints stay on disk; None leaves the folder as it is, or absent.
          keep_every: those of steps that it divides stay too; 0 for none.
        """
        self.directory = workdir.absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, create=keep is not None
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Steps that are on disk, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, replay: dict[str, np.ndarray], progress: Progress) -> None:
        """Starts to save; returns once the arrays are copied off the devices."""
        items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(progress)}
        if replay:
            items["replay"] = ocp.args.StandardSave(replay)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def progress(self, step: int) -> Progress:
        """Where the run stood at a saved step."""
        return self._restore(step, progress=ocp.args.JsonRestore())["progress"]

    def state(self, step: int, like: Any) -> Any:
        """The saved state, laid out like the `jax.ShapeDtypeStruct`s (with shardings) of `like`."""
        return self._restore(step, state=ocp.args.StandardRestore(like))["state"]

    def params(self, step: int, network: str, like: Any) -> Any:
        """The parameters alone of the "generator" or "discriminator", None where the stage had none.

        No optimizer state is read.
        """
        item = {network: {"params": like}}
        restore = ocp.args.PyTreeRestore(
            item=item,
            restore_args=jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding), item),
            partial_restore=True,
        )
        self._check_saved(step)
        with ocp.CheckpointManager(
            self.directory,
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(read_only=True),
        ) as manager:
            if manager.item_metadata(step)["state"].tree[network] is None:
                return None
            return manager.restore(step, args=ocp.args.Composite(state=restore))["state"][network]["params"]

    def replay(self, step: int) -> dict[str, np.ndarray]:
        """The saved replay groups; empty where the run has none."""
        if not (self.directory / str(step) / "replay").exists():
            return {}
        arrays = self._restore(step, replay=ocp.args.StandardRestore())["replay"]
        return {name: np.asarray(value) for name, value in arrays.items()}

    def stage(self) -> str | None:
        """Of the newest checkpoint that tells it; None where none does."""
        for step in reversed(self.steps()):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it is damaged; `state` says so, later
                return self.progress(step)["stage"]
        return None

    def set_aside(self, step: int) -> pathlib.Path:
        """Renames a damaged checkpoint, so that nothing takes it for one and its step can be saved again.

        Of a process that is alone.
        """
        place = self.directory / str(step)
        names = (f"{step}.damaged" + (f".{number}" if number else "") for number in itertools.count())
        aside = next(path for name in names if not (path := place.with_name(name)).exists())
        place.rename(aside)
        self._manager.reload()
        return aside

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Returns when everything is on disk; nothing more can be saved."""
        self._manager.close()

    def _restore(self, step: int, **items: Any) -> Any:
        self._check_saved(step)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_saved(self, step: int) -> None:
        if step not in self._manager.all_steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.directory} has no checkpoint of step {step}; there are: {known}")
