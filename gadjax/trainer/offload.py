"""Moves parts of a state between the devices and host memory, so that a phase has on the devices what it uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from gadjax.distill.state import GadState
from gadjax.distill.steps import Phase

# The parts that each phase reads. All others may wait in host memory.
_USED: dict[Phase, tuple[str, ...]] = {
    "rollout": ("generator.params",),
    "frozen rollout": ("reference",),
    "discriminator": ("discriminator.params", "discriminator.opt_state"),
    "reference": ("reference",),
    "generator": ("generator.params", "generator.opt_state"),
    "measure": ("generator.params", "discriminator.params"),
}
_MOMENTS = ("generator.opt_state", "discriminator.opt_state")
_NETWORKS = ("generator.params", "discriminator.params", "reference")


@dataclasses.dataclass(frozen=True)
class Offload:
    """Which parts of a state may wait in host memory (`config.offload`), and the moves.

    Each part moves as a whole, between the compiled programs. That takes seconds a step for a network of billions of
    parameters, and leaves nothing for the compiler to get wrong.

    Attributes:
      optimizer: whether the moments of both optimizers may wait.
      networks: whether the parameters of the networks may wait.
    """

    optimizer: bool = False
    networks: bool = False

    def on_device(self, phase: Phase) -> set[str]:
        """The parts that are on the devices during a phase."""
        return (set(_MOMENTS + _NETWORKS) - self._moving()) | set(_USED[phase])

    def waiting(self, phase: Phase) -> set[str]:
        """The parts that are in host memory during a phase."""
        return self._moving() - self.on_device(phase)

    def _moving(self) -> set[str]:
        return {*_MOMENTS * self.optimizer, *_NETWORKS * self.networks}

    @classmethod
    def of(cls, config: ConfigDict) -> Offload:
        """The offload that `config.offload` asks for."""
        return cls(config.offload.optimizer, config.offload.networks)

    def arrange(self, state: GadState, phase: Phase) -> GadState:
        """The state with every part where the phase wants it. Parts leave the devices before others arrive.

        The arrays that move are deleted where they were.

        Args:
          state: a state of arrays, or of `jax.ShapeDtypeStruct`s.
          phase: the phase that begins.
        """
        if not (self.optimizer or self.networks):
            return state
        here = self.on_device(phase)
        for part in _MOMENTS + _NETWORKS:
            if part not in here:
                state = _move(state, part, "pinned_host")
        for part in _MOMENTS + _NETWORKS:  # in the same order in every process
            if part in here:
                state = _move(state, part, "device")
        return state


def read_part(state: GadState, part: str) -> Any:
    """A part of a state by its name; None where the stage has no such part."""
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
    leaf.delete()  # frees the memory even if somebody still holds the old state
    return moved
