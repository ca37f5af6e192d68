"""Whether a run's checkpoints and exports fit on the disk, which is checked before the first step."""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gadjax.config.check import uses_discriminator
from gadjax.errors import UserError
from gadjax.files import is_url
from gadjax.setup.blueprint import Blueprint, abstract_state
from gadjax.setup.prepare import Setup, stage_lengths
from gadjax.workdir.checkpoints import checkpoint_directory

_GB = 1e9


def check_space(setup: Setup, workdir: pathlib.Path, saved: Sequence[int]) -> None:
    """Refuses a run that will write more than its disks have free: the workdir's disk and the checkpoints' disk.

    Arrays are counted at their full size; Orbax compresses them a little. The space of an object store is not known.

    Args:
      setup: the run.
      workdir: the run's folder, which need not exist.
      saved: the steps of the checkpoints that are on disk already, ascending.

    Raises:
      UserError: there is too little space. The message says how much is free, and how much is needed for what.
    """
    size, exports, count = checkpoint_bytes(setup), export_bytes(setup), _new_checkpoints(setup, saved)
    # The two may lie on one disk, which must have room for both.
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


def checkpoint_bytes(blueprint: Blueprint) -> int:
    """The size of a run's largest checkpoint: that of a stage with every network and its optimizer's moments."""
    states = [abstract_state(blueprint, stage) for stage in blueprint.config.stages]
    return max(_bytes((state.generator, state.discriminator, state.reference)) for state in states)


def export_bytes(blueprint: Blueprint) -> int:
    """The size of all that a run exports at its end."""
    config = blueprint.config
    networks = 2 if any(uses_discriminator(config, stage) for stage in config.stages) else 1
    return networks * _bytes(blueprint.generator.abstract_params(), config.export_dtype)


def _new_checkpoints(setup: Setup, saved: Sequence[int]) -> int:
    """How many checkpoints will be on the disk at once, at most, beside those that are there now."""
    config, total = setup.config.checkpoint, sum(stage_lengths(setup).values())
    done = saved[-1] if saved else 0
    # An old checkpoint is removed after the new one is complete: one more than are kept.
    count = max(1, config.keep + bool(config.best) + 1 - len(saved))
    if config.keep_every:
        count += total // config.keep_every - done // config.keep_every
    return max(0, min(count, total - done))  # each step is saved at most once


def _check(place: pathlib.Path, name: str, needed: float, what: str) -> None:
    free = shutil.disk_usage(_existing(place)).free
    if needed > free:
        raise UserError(
            f"{name}: {free / _GB:.1f} GB are free there, and the run writes up to {needed / _GB:.1f}: {what}"
        )


def _device(place: pathlib.Path) -> int:
    """The number of the disk that a path is on, or would be on."""
    return _existing(place).stat().st_dev


def _existing(place: pathlib.Path) -> pathlib.Path:
    """The path, or its nearest parent folder that exists."""
    return next(path for path in (place, *place.absolute().parents) if path.exists())


def _bytes(tree: Any, dtype: str | None = None) -> int:
    """The size of a tree's arrays, in their own dtypes or all in `dtype`."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * jnp.dtype(dtype or leaf.dtype).itemsize for leaf in leaves)
