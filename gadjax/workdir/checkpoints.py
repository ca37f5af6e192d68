"""A run's checkpoints, written by Orbax in the background; each one on disk is complete."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from gadjax.config.check import field_value
from gadjax.errors import UserError
from gadjax.files import expand, is_url
from gadjax.models.weights import named_leaves
from gadjax.workdir.best import KeepBest
from gadjax.workdir.storage import is_damage, saving, using

Progress = dict[str, Any]  # JSON: stage, stage_step, step, held-out figures if there are any, and counters

_SAVE_SECONDS = 3600  # at most for a save: 360 GB (both networks of 14B parameters) at 100 MB/s; Orbax has 1200


class Checkpoints:
    """Saves and restores `(state, replay, progress)` in `directory/STEP`, where STEP counts over all stages."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        directory: str = "",
        best: str = "",
        keep: int | None = None,
        keep_every: int = 0,
    ):
        """Opens the checkpoints of a run.

        Args:
          workdir: the run's folder.
          directory: the value of `config.checkpoint.directory`.
          best: the held-out figure whose best checkpoint is kept too, or "".
          keep: how many of the last checkpoints are kept. None only reads, and makes no folder.
          keep_every: checkpoints at multiples of this step are kept too; 0 for none.

        Raises:
          UserError: the directory cannot be opened or read.
        """
        self.directory = checkpoint_directory(workdir, directory)
        self._best = KeepBest(best)
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if best:
            kept.append(self._best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            create=keep is not None,
            async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
        )
        with using(self.directory, "opened"):
            self._manager = _Manager(self.directory, options=options)
        if best:
            with using(self.directory, "read"):
                for step in self.steps():
                    with _damage_ignored():
                        self._best.note(step, self.progress(step).get("figures", {}))

    @classmethod
    def of(cls, workdir: pathlib.Path, config: Mapping[str, Any], *, write: bool = False) -> Checkpoints:
        """The checkpoints of a run.

        Args:
          workdir: the run's folder.
          config: a `ConfigDict`, or the contents of the run's config.json, which an older gadjax may have written.
          write: whether checkpoints will be saved, and old ones removed as the config says.
        """
        names = ("keep", "keep_every") if write else ()
        options = {name: field_value(config, f"checkpoint.{name}") for name in names}
        options |= {name: field_value(config, f"checkpoint.{name}") or "" for name in ("directory", "best")}
        return cls(workdir, **options)

    def steps(self) -> list[int]:
        """The steps that are on disk, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, replay: dict[str, np.ndarray], progress: Progress) -> None:
        """Starts a save, and returns once the arrays are copied off the devices.

        Raises:
          UserError: this checkpoint or the one before cannot be written. Those of earlier steps are complete.
        """
        items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(progress)}
        if replay:
            items["replay"] = ocp.args.StandardSave(replay)
        self._best.note(step, progress.get("figures", {}))
        with saving(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def progress(self, step: int) -> Progress:
        """The progress that was saved at a step."""
        return self._restore(step, progress=ocp.args.JsonRestore())["progress"]

    def state(self, step: int, like: Any) -> Any:
        """The state that was saved at a step, laid out as `like`, a tree of `jax.ShapeDtypeStruct`s with shardings."""
        return self._restore(step, state=ocp.args.StandardRestore(like))["state"]

    def params(self, step: int, network: str, like: Any) -> Any:
        """The parameters of one network, or None if the stage had no such network. Reads no optimizer state.

        Args:
          step: the checkpoint's step.
          network: "generator" or "discriminator".
          like: a tree of `jax.ShapeDtypeStruct`s with shardings.
        """
        item = {network: {"params": like}}
        restore = ocp.args.PyTreeRestore(
            item=item,
            restore_args=jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding), item),
            partial_restore=True,
        )
        self._check_saved(step)
        with self._reader() as manager:
            if _saved_tree(manager, step)[network] is None:
                return None
            return manager.restore(step, args=ocp.args.Composite(state=restore))["state"][network]["params"]

    def replay(self, step: int) -> dict[str, np.ndarray]:
        """The replayed groups that were saved at a step; empty if there were none."""
        if not (self.directory / str(step) / "replay").exists():
            return {}
        arrays = self._restore(step, replay=ocp.args.StandardRestore())["replay"]
        return {name: np.asarray(value) for name, value in arrays.items()}

    def stage(self) -> str | None:
        """The stage of the newest checkpoint whose progress can be read, or None."""
        with using(self.directory, "read"):
            for step in reversed(self.steps()):
                with _damage_ignored():
                    return self.progress(step)["stage"]
        return None

    def best(self) -> tuple[int, float] | None:
        """The step of the best checkpoint on disk and its figure, or None if none has the figure."""
        return self._best.best(self.steps())

    def best_step(self) -> int:
        """The step of the best checkpoint.

        Raises:
          UserError: the run asks for no best checkpoint, or no checkpoint has the figure.
        """
        if not self._best.figure:
            raise UserError(f"{self.directory}: no checkpoint is the best, as the run has no config.checkpoint.best")
        if (best := self.best()) is None:
            raise UserError(
                f"{self.directory}: no checkpoint has the figure {self._best.figure} (config.checkpoint.best) yet: "
                "measurements on held-out prompts give it"
            )
        return best[0]

    def improves(self, figures: Mapping[str, float]) -> bool:
        """Whether held-out figures are better than those of every checkpoint on disk."""
        return self._best.improves(figures, self.steps())

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a checkpoint's parameters, by names such as generator/embed/embedding.

        For a damaged checkpoint it raises an error of which `is_damage` is true.
        """
        with self._reader() as manager:
            state = _saved_tree(manager, step)
        networks = {name: state[name]["params"] for name in ("generator", "discriminator") if state[name]}
        return {name: tuple(leaf.shape) for name, leaf in named_leaves(networks).items()}

    def set_aside(self, step: int) -> epath.Path:
        """Renames a damaged checkpoint and returns its new path, so that its step can be saved again.

        Call it in a run of one process only.
        """
        place = self.directory / str(step)
        names = (f"{step}.damaged" + (f".{number}" if number else "") for number in itertools.count())
        aside = next(path for name in names if not (path := place.with_name(name)).exists())
        place.rename(aside)
        self._manager.reload()
        return aside

    def wait(self) -> None:
        """Returns when every save is on disk. Raises what `save` raises."""
        with saving(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Returns when every save is on disk; nothing more can be saved. Raises what `save` raises."""
        with saving(self.directory):
            self._manager.close()

    def _reader(self) -> ocp.CheckpointManager:
        """A second manager, which can read parts of a state."""
        return ocp.CheckpointManager(
            self.directory,
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(read_only=True),
        )

    def _restore(self, step: int, **items: Any) -> Any:
        self._check_saved(step)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_saved(self, step: int) -> None:
        if step not in self._manager.all_steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.directory} has no checkpoint of step {step}; there are: {known}")


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask JAX at each save whether a preemption was noticed.

    JAX counts these questions to stop all processes at the same one. Only `StopRequest` may ask.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def clear_unfinished(directory: epath.Path) -> None:
    """Removes the remains of saves that were killed or ran out of space. Call it in one process, while none saves.

    Raises:
      UserError: a folder cannot be removed; the message names the directory.
    """
    with using(directory, "cleared of unfinished checkpoints"):
        for unfinished in ocp.utils.tmp_checkpoints(directory):
            # In an object store Orbax returns every folder that lacks its file for a finished save.
            if unfinished.get().name.split(".")[0].isdigit():
                unfinished.get().rmtree()


def checkpoint_directory(workdir: pathlib.Path, directory: str = "") -> epath.Path:
    """The folder of a run's checkpoints.

    Args:
      workdir: the run's folder.
      directory: the value of `config.checkpoint.directory`: an absolute path, a path in the workdir, or an address such
        as gs://BUCKET/RUN, which etils and Orbax read (not tried on a real bucket). "" is "checkpoints".
    """
    if is_url(directory):
        return epath.Path(directory)
    return epath.Path(workdir.absolute() / expand(directory or "checkpoints"))


def _saved_tree(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The metadata of a saved state's arrays, as a tree; `manager` is `Checkpoints._reader`'s."""
    if (state := manager.item_metadata(step)["state"]) is None:
        raise ValueError("the metadata of its state is gone")
    return state.tree


@contextlib.contextmanager
def _damage_ignored() -> Iterator[None]:
    """A block that ends quietly if the checkpoint that it reads is damaged. Restoring its state reports it later."""
    try:
        yield
    except Exception as error:
        if not is_damage(error):
            raise
