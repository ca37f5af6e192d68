"""Which parts of a state wait in host memory: a part is on the devices while a phase uses it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from gadjax.distill.state import GadState
from gadjax.distill.steps import Phase

# What each phase reads; everything else may wait elsewhere.
_USED: dict[Phase, tuple[str, ...]] = {
    "rollout": ("generator.params",),
    "discriminator": ("discriminator.params", "discriminator.opt_state"),
    "reference": ("reference",),
    "generator": ("generator.params", "generator.opt_state"),
    "measure": ("generator.params", "discriminator.params"),
}
_MOMENTS = ("generator.opt_state", "discriminator.opt_state")
_NETWORKS = ("generator.params", "discriminator.params", "reference")


@dataclasses.dataclass(frozen=True)
class Offload:
    """Moves the parts of a state that the config lets wait in host memory (`config.offload`).

    A whole part crosses at once, outside of the compiled programs: seconds a step for a network of billions of
    parameters, and nothing for the compiler to get wrong.
    """

    optimizer: bool = False
    networks: bool = False

    def on_device(self, phase: Phase) -> set[str]:
        """The parts that are on the devices in a phase."""
        return (set(_MOMENTS + _NETWORKS) - self._moving()) | set(_USED[phase])

    def waiting(self, phase: Phase) -> set[str]:
        """The parts that are in host memory in a phase."""
        return self._moving() - self.on_device(phase)

    def _moving(self) -> set[str]:
        return {*_MOMENTS * self.optimizer, *_NETWORKS * self.networks}

    @classmethod
    def of(cls, config: ConfigDict) -> Offload:
        """As `config.offload` says."""
        return cls(config.offload.optimizer, config.offload.networks)

    def arrange(self, state: GadState, phase: Phase) -> GadState:
        """The state with every part where the phase wants it. First what leaves the devices, then what comes.

        Arrays that move are gone from the state that was given.

        `state`: of arrays, or of `jax.ShapeDtypeStruct`s.
        """
        if not (self.optimizer or self.networks):
            return state
        here = self.on_device(phase)
        for part in _MOMENTS + _NETWORKS:
            if part not in here:
                state = _move(state, part, "pinned_host")
        for part in _MOMENTS + _NETWORKS:  # in one order, in every process
            if part in here:
                state = _move(state, part, "device")
        return state


def read_part(state: GadState, part: str) -> Any:
    """A part of a state by its name, None where the stage has none."""
    name, _, field = part.partition(".")
    holder = getattr(state, name)
    return getattr(holder, field) if holder is not None and field else holder


def _move(state: GadState, part: str, memory: str) -> GadState:
    tree = read_part(state, part)
    if tree is None:
        return state
    tree = jax.tree.map(lambda leaf: _put(leaf, memory), tree)
    name, _, field = part.partition(".")
    return state.replace(**{name: getattr(state, name).replace(**{field: tree}) if field else tree})


def _put(leaf: Any, memory: str) -> Any:
    if leaf.sharding.memory_kind == memory:
        return leaf
    sharding = leaf.sharding.with_memory_kind(memory)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    moved = jax.block_until_ready(jax.device_put(leaf, sharding))
    leaf.delete()  # whoever still holds the state as it was must not hold the memory
    return moved
