"""Whether a run's checkpoints and exports fit on the disk: known before the first step, not after the first day."""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gadjax.errors import UserError
from gadjax.files import is_url
from gadjax.setup.blueprint import abstract_state
from gadjax.setup.prepare import Setup, stage_lengths
from gadjax.workdir.checkpoints import checkpoint_directory

_GB = 1e9


def check_space(setup: Setup, workdir: pathlib.Path, saved: Sequence[int]) -> None:
    """Refuses a run whose disks have no room for what it will write: that of the workdir, and that of its checkpoints.

    Counted are whole arrays; on the disk they are compressed a little. An object store is not asked for its room.

    Args:
      setup: the run.
      workdir: need not be there.
      saved: steps of the checkpoints that it holds, ascending, which have their room already.

    Raises:
      UserError: how much is free, what is needed, and for what.
    """
    count = _count(setup, saved)
    size = max(_checkpoint_bytes(setup, stage) for stage in setup.config.stages)
    networks = 1 if set(setup.config.stages) == {"seqkd"} else 2
    exports = networks * _bytes(setup.generator.abstract_params(), setup.config.export_dtype)
    checkpoints = f"{count} checkpoints of {size / _GB:.1f} GB"
    exported = f"exports of {exports / _GB:.1f}"
    remedy = "lower config.checkpoint.keep, or use another disk"
    where, name = checkpoint_directory(workdir, setup.config.checkpoint.directory), f"--workdir {workdir}"
    if is_url(where):
        _check(workdir, name, exports, f"{exported}; use another disk (the room in {where} is not known)")
    elif _device(pathlib.Path(where)) == _device(workdir):
        _check(workdir, name, count * size + exports, f"{checkpoints}, and {exported}; {remedy}")
    else:
        _check(pathlib.Path(where), f"config.checkpoint.directory {where}", count * size, f"{checkpoints}; {remedy}")
        _check(workdir, name, exports, f"{exported}; use another disk")


def _count(setup: Setup, saved: Sequence[int]) -> int:
    """Checkpoints that will be written beside those that are there, at most at once."""
    config, total = setup.config.checkpoint, sum(stage_lengths(setup).values())
    done = saved[-1] if saved else 0
    # A new one is whole before an old one goes.
    count = max(1, config.keep + bool(config.best) + 1 - len(saved))
    if config.keep_every:
        count += total // config.keep_every - done // config.keep_every
    return max(0, min(count, total - done))  # a save is of a step that is new


def _check(place: pathlib.Path, name: str, needed: float, what: str) -> None:
    free = shutil.disk_usage(_existing(place)).free
    if needed > free:
        raise UserError(
            f"{name}: {free / _GB:.1f} GB are free there, and the run writes up to {needed / _GB:.1f}: {what}"
        )


def _device(place: pathlib.Path) -> int:
    """The number of the disk that a place is on, or would be."""
    return _existing(place).stat().st_dev


def _existing(place: pathlib.Path) -> pathlib.Path:
    return next(path for path in (place, *place.absolute().parents) if path.exists())


def _checkpoint_bytes(setup: Setup, stage: str) -> int:
    state = abstract_state(setup, stage)
    return sum(_bytes(part) for part in (state.generator, state.discriminator, state.reference))


def _bytes(tree: Any, dtype: str | None = None) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * jnp.dtype(dtype or leaf.dtype).itemsize for leaf in leaves)
