"""Checkpoints of a run: Orbax, asynchronous, whole or absent."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from gadjax.config.check import field_value
from gadjax.errors import UserError, first_line
from gadjax.files import expand, is_url
from gadjax.models.weights import named_leaves

Progress = dict[str, Any]  # stage, stage_step, step, perhaps held-out figures, and what else must survive as JSON

_SAVE_SECONDS = 3600  # at most, of a save: 360 GB (14B, both networks) at 100 MB/s; Orbax's own limit is a third
# Of the machine, its disks and its network; not of what the files hold.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
)
_SYSTEM_STATUSES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
# What reading files raises that are cut, gone or overwritten. Object stores' clients have other errors.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, EOFError, FileNotFoundError, NotADirectoryError)


class Checkpoints:
    """Saves and restores `(state, replay, progress)` in `directory/STEP`; STEP counts over all stages."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        directory: str = "",
        best: str = "",
        keep: int | None = None,
        keep_every: int = 0,
    ):
        """
        Args:
          workdir: of the run.
          directory: that checkpoints are in, as `config.checkpoint.directory` has it.
          best: the held-out figure by which the best checkpoint stays too; "" for none.
          keep: how many of the last checkpoints stay on disk; None leaves the folder as it is, or absent.
          keep_every: those of steps that it divides stay too; 0 for none.

        Raises:
          UserError: the directory cannot be opened or read.
        """
        self.directory = checkpoint_directory(workdir, directory)
        self._best = _KeepBest(best)
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
        with using(self.directory, "read"):
            self._read_figures()

    @classmethod
    def of(cls, workdir: pathlib.Path, config: Mapping[str, Any], *, write: bool = False) -> Checkpoints:
        """A run's checkpoints; `config`: a `ConfigDict`, or what a config.json holds, perhaps of an older gadjax."""
        names = ("keep", "keep_every") if write else ()
        options = {name: field_value(config, f"checkpoint.{name}") for name in names}
        options |= {name: field_value(config, f"checkpoint.{name}") or "" for name in ("directory", "best")}
        return cls(workdir, **options)

    def steps(self) -> list[int]:
        """Steps that are on disk, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, replay: dict[str, np.ndarray], progress: Progress) -> None:
        """Starts to save; returns once the arrays are copied off the devices.

        Raises:
          UserError: this, or the save before, could not be written; the steps saved earlier are whole.
        """
        items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(progress)}
        if replay:
            items["replay"] = ocp.args.StandardSave(replay)
        self._best.note(step, progress)
        with self._writing():
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
        with self._reader() as manager:
            if _saved_tree(manager, step)[network] is None:
                return None
            return manager.restore(step, args=ocp.args.Composite(state=restore))["state"][network]["params"]

    def replay(self, step: int) -> dict[str, np.ndarray]:
        """The saved replay groups; empty where the run has none."""
        if not (self.directory / str(step) / "replay").exists():
            return {}
        arrays = self._restore(step, replay=ocp.args.StandardRestore())["replay"]
        return {name: np.asarray(value) for name, value in arrays.items()}

    def stage(self) -> str | None:
        """The stage of the newest checkpoint that tells it; None if none does."""
        with using(self.directory, "read"):
            for step in reversed(self.steps()):
                with _damage_aside():
                    return self.progress(step)["stage"]
        return None

    def best(self) -> tuple[int, float] | None:
        """The step whose figure is the best of those on disk, and that figure; None where none has it."""
        return self._best.of(self.steps())

    def best_step(self) -> int:
        """The step of `best`.

        Raises:
          UserError: the run asks for no best one, or no checkpoint has the figure.
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
        """Whether held-out figures are better than those of every checkpoint."""
        figure, best = self._best.figure, self.best()
        new = quality(figure, figures.get(figure))
        return new > (-math.inf if best is None else quality(figure, best[1]))

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that a checkpoint holds, by names such as generator/embed/embedding.

        Raises:
          ValueError: it is damaged; or what `is_damage` knows.
        """
        with self._reader() as manager:
            state = _saved_tree(manager, step)
        networks = {name: state[name]["params"] for name in ("generator", "discriminator") if state[name]}
        return {name: tuple(leaf.shape) for name, leaf in named_leaves(networks).items()}

    def set_aside(self, step: int) -> epath.Path:
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
        """Returns when everything is on disk; raises as `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Returns when everything is on disk; nothing more can be saved. Raises as `save`."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of TensorStore, for one, which has no class of its own
            if not (reason := _refusal(error)):
                raise
            raise UserError(
                f"{self.directory}: a checkpoint cannot be written ({reason}); those of earlier steps are whole: make "
                "room there, or mend what it is, and the same command goes on"
            ) from error

    def _read_figures(self) -> None:
        if self._best.figure:
            for step in self.steps():
                with _damage_aside():
                    self._best.note(step, self.progress(step))

    def _reader(self) -> ocp.CheckpointManager:
        """Another manager, that can read parts of a state."""
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
    """Orbax's, that does not ask JAX at each save whether a preemption was noticed.

    JAX counts those questions, of all processes, to tell at which one all stop: they are `StopRequest`'s alone.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _KeepBest(policies.PreservationPolicy):
    """Orbax keeps the checkpoint with the best held-out figure."""

    def __init__(self, figure: str):
        self.figure = figure
        self._figures: dict[int, float] = {}

    def note(self, step: int, progress: Progress) -> None:
        """Remembers what a checkpoint's progress says of its step."""
        self._figures.pop(step, None)  # of a checkpoint that was set aside
        value = progress.get("figures", {}).get(self.figure)
        if quality(self.figure, value) > -math.inf:
            self._figures[step] = value

    def of(self, steps: Sequence[int]) -> tuple[int, float] | None:
        """The best of these steps, of equals the last, and its figure."""
        measured = [step for step in steps if step in self._figures]
        rank = lambda step: (quality(self.figure, self._figures[step]), step)  # noqa: E731
        best = max(measured, key=rank, default=None)
        return None if best is None else (best, self._figures[best])

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> list[bool]:
        """Orbax's question; `checkpoints`: objects with a `step`."""
        best = self.of([info.step for info in checkpoints])
        return [best is not None and info.step == best[0] for info in checkpoints]


# How good a value of a figure is: more is better. The keys are those of `config.checkpoint.best`.
_QUALITY = {
    "nll": lambda value: -value,
    "rouge_l": lambda value: value,
    "two_sample": lambda value: -abs(value - 0.5),  # at 0.5 nobody can tell student from teacher
}


def quality(figure: str, value: float | None) -> float:
    """How good a value of a figure is; -inf where it was not measured, or is not finite."""
    return -math.inf if value is None or not math.isfinite(value) else _QUALITY[figure](value)


def clear_unfinished(directory: epath.Path) -> None:
    """Removes what saves left that were killed or found no room; for one process, while none saves.

    Raises:
      UserError: naming the directory, where that fails.
    """
    with using(directory, "cleared of unfinished checkpoints"):
        for unfinished in ocp.utils.tmp_checkpoints(directory):
            # In an object store Orbax takes every folder for one, but those with a file that says that they are whole.
            if unfinished.get().name.split(".")[0].isdigit():
                unfinished.get().rmtree()


def is_damage(error: BaseException) -> bool:
    """Whether an error in reading a checkpoint is of its files, not of this machine or this run."""
    if isinstance(error, UserError | jax.errors.JaxRuntimeError):
        return False
    cause = error
    while cause.__cause__ is not None:  # Orbax wraps what TensorStore raises into a plain Exception
        cause = cause.__cause__
    found = isinstance(cause, _DAMAGE) and not str(cause).startswith(_SYSTEM_STATUSES)
    return found and _refusal(error) is None


@contextlib.contextmanager
def using(directory: epath.Path, what: str) -> Iterator[None]:
    """What a folder of checkpoints does not let the block do is a `UserError` that names it.

    Args:
      what: the block does, as in "cannot be opened".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries that read object stores have errors of their own
        reason = _refusal(error) or (error.strerror if isinstance(error, OSError) else None)
        if not (reason or isinstance(error, OSError) or is_url(directory)):
            raise
        raise UserError(
            f"{directory} cannot be {what} ({reason or first_line(error)}): mend that, or choose another place in "
            "config.checkpoint.directory"
        ) from error


def checkpoint_directory(workdir: pathlib.Path, directory: str = "") -> epath.Path:
    """Where a run's checkpoints are.

    Args:
      directory: absolute, or in the workdir; or gs://BUCKET/RUN, as etils and Orbax read it (tried on no real bucket).
    """
    if is_url(directory):
        return epath.Path(directory)
    return epath.Path(workdir.absolute() / expand(directory or "checkpoints"))


def _saved_tree(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """What Orbax wrote down of a state; `manager`: `_reader`'s."""
    if (state := manager.item_metadata(step)["state"]) is None:
        raise ValueError("the metadata of its state is gone")
    return state.tree


@contextlib.contextmanager
def _damage_aside() -> Iterator[None]:
    """Passes over a checkpoint that is damaged; `state` says so, later."""
    try:
        yield
    except Exception as error:
        if not is_damage(error):
            raise


def _refusal(error: BaseException | None) -> str | None:
    """Why a file system would not take what was written, where that is what an error is about."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
            return error.strerror
        if isinstance(error, TimeoutError):
            return "it timed out"
        if reason := next((text for text in map(os.strerror, _SYSTEM_ERRORS) if text in str(error)), None):
            return reason
        error = error.__cause__ or error.__context__
    return None
