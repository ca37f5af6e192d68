"""Whether a run's checkpoints and exports fit on the disk: known before the first step, not after the first day."""

from __future__ import annotations

import contextlib
import math
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from gadjax.checkpoint import Checkpoints
from gadjax.errors import UserError
from gadjax.trainer.blueprint import abstract_state
from gadjax.trainer.setup import Setup, stage_lengths

_GB = 1e9


def check_space(setup: Setup, workdir: pathlib.Path) -> None:
    """Refuses a run whose workdir has no room for what it will write. Checkpoints that are there have theirs already.

    Counted are whole arrays; on the disk they are compressed a little.

    Raises:
      UserError: how much is free, what is needed, and for what.
    """
    config = setup.config.checkpoint
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        saved = len(checkpoints.steps())
    size = max(_checkpoint_bytes(setup, stage) for stage in setup.config.stages)
    kept = config.keep + (sum(stage_lengths(setup).values()) // config.keep_every if config.keep_every else 0)
    count = max(1, kept + 1 - saved)  # a new one is whole before an old one goes
    exports = 2 * _bytes(setup.generator.abstract_params(), setup.config.export_dtype)
    free, needed = shutil.disk_usage(workdir).free, count * size + exports
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
