"""One program of a run: its arguments and what else is on the devices, as shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from gadjax.distill.state import GadState
from gadjax.models.model import Model, Params
from gadjax.rollout.sampler import ADMISSIONS, TOKEN_STEPS, sizes_of
from gadjax.setup.blueprint import Blueprint
from gadjax.trainer.offload import Offload, Phase, read_part

# The phase before each phase. The rollout's weights are cast or moved in the rollout's own phase.
_BEFORE: dict[Phase, Phase] = {
    "rollout": "generator",
    "frozen rollout": "generator",
    "discriminator": "rollout",
    "reference": "discriminator",
    "generator": "reference",
    "measure": "generator",
}


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """One program of a run.

    Attributes:
      name: as the report shows it.
      blueprint: of the run.
      model: the network that the program runs, over its mesh.
      stages: stages of the config whose steps run the program; none for held-out figures.
      phase: phase of a step, which decides what else is on the devices (`gadjax.trainer.offload`).
      function: makes the jitted function from the blueprint.
      given: makes the positional arguments.
      base: the keyword argument `base`, the frozen parameters that adapters are added to; None if it is not passed.
      static: static keyword arguments.
      resident: arrays on the devices while the program runs, including arguments that outlive it.
      moved: arrays that come from host memory before the program, or leave to there.
      waiting: arrays in host memory while the program runs.
      loop_trips: how often the bodies of data-dependent loops run each time, by the loops' names.
    """

    name: str
    blueprint: Blueprint
    model: Model
    stages: tuple[str, ...]
    phase: Phase
    function: Callable[[Blueprint], Any]
    given: Callable[[], tuple]
    base: Params | None
    static: dict[str, Any]
    resident: Any
    moved: Any
    waiting: Any
    loop_trips: Mapping[str, int]

    @functools.cached_property
    def arguments(self) -> tuple:
        """The arguments with their layouts, `base` last. Made on first use."""
        return *self.given(), self.base

    def trace(self, *, remat: bool = True) -> jax.stages.Traced:
        """The jitted function, traced; without `remat`, the function of the same run with config.remat="none"."""
        function = self.function(self.blueprint if remat else _without_remat(self.blueprint))
        base = {} if self.base is None else {"base": self.base}
        return function.trace(*self.arguments[:-1], **base, **self.static)


def make_program(
    blueprint: Blueprint,
    state: GadState,
    name: str,
    function: Callable[[Blueprint], Any],
    given: Callable[[], tuple],
    *,
    phase: Phase,
    model: Model,
    again: bool = False,
    beside: Any = None,
    **fields: Any,
) -> RunProgram:
    """A program that runs beside a state.

    Args:
      blueprint, name, function, given, phase, model: as in `RunProgram`.
      state: the run's state, with layouts.
      again: whether another program of the same phase came before, so that nothing moves.
      beside: arrays that are on the devices with the state.
      fields: other fields of `RunProgram`, by default empty.
    """
    offload = Offload.of(blueprint.config)
    here = offload.on_device(phase)
    moved = set() if again else here ^ offload.on_device(_BEFORE[phase])
    return RunProgram(
        name=name,
        model=model,
        blueprint=blueprint,
        phase=phase,
        function=function,
        given=given,
        resident=[*(read_part(state, part) for part in here), state.base, beside],
        moved=[read_part(state, part) for part in moved],
        waiting=[read_part(state, part) for part in offload.waiting(phase)],
        **({"stages": (), "base": None, "static": {}, "loop_trips": {}} | fields),
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of the arrays with layouts in a tree, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if getattr(leaf, "sharding", None) is not None
    )


def rollout_trips(blueprint: Blueprint, batch: int, width: int, num_samples: int, slots: int) -> dict[str, int]:
    """`loop_trips` of a rollout whose samples all have the most tokens; arguments as for `rollout.sampler.sizes_of`."""
    sizes = sizes_of(blueprint.sampler.mesh, batch, width, num_samples, slots)
    admissions = -(-sizes.prompts // sizes.chunk)  # if all shards have room at the same time
    steps = -(-sizes.prompts * sizes.samples // sizes.slots) * blueprint.config.data.max_response_length
    return {ADMISSIONS: admissions, TOKEN_STEPS: -(-steps // admissions)}


def _without_remat(blueprint: Blueprint) -> Blueprint:
    models = {name: getattr(blueprint, name) for name in ("generator", "sampler", "discriminator")}
    plain = {
        name: dataclasses.replace(model, config=dataclasses.replace(model.config, remat="none"))
        for name, model in models.items()
    }
    return dataclasses.replace(blueprint, **plain)
