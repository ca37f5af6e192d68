"""Whether a run's checkpoints and exports fit on the disk: known before the first step, not after the first day."""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gadjax.checkpoint import checkpoint_directory
from gadjax.errors import UserError
from gadjax.trainer.blueprint import abstract_state
from gadjax.trainer.setup import Setup, stage_lengths

_GB = 1e9


def check_space(setup: Setup, workdir: pathlib.Path, saved: Sequence[int]) -> None:
    """Refuses a run whose workdir has no room for what it will write.

    Counted are whole arrays; on the disk they are compressed a little.

    Args:
      setup: the run.
      workdir: is there.
      saved: steps of the checkpoints that it holds, ascending, which have their room already.

    Raises:
      UserError: how much is free, what is needed, and for what.
    """
    config, total = setup.config.checkpoint, sum(stage_lengths(setup).values())
    done = saved[-1] if saved else 0
    # A new one is whole before an old one goes.
    count = min(max(1, config.keep + 1 - len(saved)), total - done)
    if config.keep_every:
        count += total // config.keep_every - done // config.keep_every
    count += bool(config.best)
    size = max(_checkpoint_bytes(setup, stage) for stage in setup.config.stages)
    networks = 1 if set(setup.config.stages) == {"seqkd"} else 2
    exports = networks * _bytes(setup.generator.abstract_params(), setup.config.export_dtype)
    place = checkpoint_directory(workdir, config.directory)  # maybe another disk's
    if "://" in str(place):  # has no size
        place, count = workdir, 0
    elif not place.exists():
        place = next(parent for parent in place.parents if parent.exists())
    free = shutil.disk_usage(place).free
    needed = count * size + exports
    if needed > free:
        raise UserError(
            f"--workdir {workdir}: {free / _GB:.1f} GB are free there, and the run writes up to {needed / _GB:.1f}: "
            f"{count} checkpoints of {size / _GB:.1f} GB, and exports of {exports / _GB:.1f}; lower "
            "config.checkpoint.keep, or use another disk"
        )


def _checkpoint_bytes(setup: Setup, stage: str) -> int:
    state = abstract_state(setup, stage)
    return sum(_bytes(part) for part in (state.generator, state.discriminator, state.reference))


def _bytes(tree: Any, dtype: str | None = None) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * jnp.dtype(dtype or leaf.dtype).itemsize for leaf in leaves)
