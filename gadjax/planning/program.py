"""One program of a run: what it is given and what else is on the devices, as shapes alone."""

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

# The phase before each. A rollout's weights are cast or moved first, in the same phase.
_BEFORE: dict[Phase, Phase] = {
    "rollout": "generator",
    "discriminator": "rollout",
    "reference": "discriminator",
    "generator": "reference",
    "measure": "generator",
}


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """One program.

    Attributes:
      name: for people.
      blueprint: of the run.
      model: the network that it runs, over its mesh.
      stages: of the config, whose steps run it; none for held-out figures.
      phase: of a step, which says what else is on the devices (`gadjax.trainer.offload`).
      function: its jitted function in the programs of a run.
      given: makes the positional arguments.
      base, static: keyword arguments: of what the trained parameters are adapters, where it is told; and static ones.
      resident: what is on the devices while it runs, those of its arguments included that outlive it.
      moved: what comes from host memory before it, and what leaves to there.
      waiting: what is in host memory while it runs.
      loop_trips: how often loops that end by their data run each time, by their names; those of a rollout.
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
        """What it is given, with layouts, the base last: made when they are first asked for."""
        return *self.given(), self.base

    def trace(self, *, remat: bool = True) -> jax.stages.Traced:
        """Its jitted function, traced; without `remat`, that of a run that is alike but for remat."""
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
    model: Model,
    phase: Phase,
    stages: tuple[str, ...] = (),
    base: Params | None = None,
    static: dict[str, Any] | None = None,
    loop_trips: Mapping[str, int] | None = None,
    again: bool = False,
    beside: Any = None,
) -> RunProgram:
    """`again`: another program of the same phase came before. `beside`: on the devices with the state."""
    offload = Offload.of(blueprint.config)
    here = offload.on_device(phase)
    moved = set() if again else here ^ offload.on_device(_BEFORE[phase])
    return RunProgram(
        name=name,
        blueprint=blueprint,
        model=model,
        stages=stages,
        phase=phase,
        function=function,
        given=given,
        base=base,
        static=static or {},
        resident=[*(read_part(state, part) for part in here), state.base, beside],
        moved=[read_part(state, part) for part in moved],
        waiting=[read_part(state, part) for part in offload.waiting(phase)],
        loop_trips=loop_trips or {},
    )


def bytes_per_device(tree: Any) -> int:
    """Of arrays with layouts, on the device that has the most."""
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
