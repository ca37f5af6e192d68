"""Searches for the settings with which a run fits its target and is fastest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from gadjax.config.check import field_value
from gadjax.errors import UserError
from gadjax.planning.compiler import Compiler
from gadjax.planning.estimate import CompiledProgram
from gadjax.planning.planner import Plan, make_plan

_REMAT = ("none", "dots", "full")
_LEAST_TOKENS, _MOST_TOKENS = 4096, 262_144


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The best plan that was found, what it changes in the config, and how many plans were compared."""

    plan: Plan
    changes: dict[str, Any]
    looked_at: int

    @property
    def flags(self) -> str:
        """The changes as flags of the command line."""
        return " ".join(f"--config.{field}={value}" for field, value in self.changes.items())


def suggest(config: ConfigDict, compiler: Compiler) -> Suggestion:
    """Climbs from the config's own settings, changing one setting at a time for as long as a change helps.

    A plan that lacks less memory is better; of two plans that fit, the faster one. Mesh, micro-batches, slots and remat
    each change some programs, and only these are compiled again; offloading changes none.

    Args:
      config, compiler: as for `make_plan`.
    """
    compiled: dict[Any, CompiledProgram] = {}
    seen: dict[tuple, Plan | None] = {}

    def look(changes: dict[str, Any]) -> Plan | None:
        key = tuple(sorted(changes.items()))
        if key not in seen:
            try:
                seen[key] = make_plan(_changed(config, changes), compiler, compiled)
            except UserError:  # a size does not divide
                seen[key] = None
        return seen[key]

    best = make_plan(config, compiler, compiled)
    changes: dict[str, Any] = {}
    improved = True
    while improved:
        improved = False
        for moves in _moves(best):
            for move in moves:
                plan = look(changes | move)
                if plan is not None and _rank(plan) < _rank(best):
                    best, changes, improved = plan, changes | move, True
                    break  # on to the next setting; this one's turn comes again
    own = {field: value for field, value in changes.items() if field_value(config, field) != value}
    return Suggestion(best, own, len(seen) + 1)


def _moves(plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """For each setting, changes to neighbouring values, the most promising first."""
    config, fits = plan.config, not plan.misfits
    if set(config.stages) & {"soda", "warmup", "gad"}:
        slots = [plan.slots * 2, plan.slots // 2]
        yield [{"rollout.slots": n} for n in (slots if fits else slots[::-1]) if 0 < n <= plan.samples]
        tensor = plan.decoding_mesh["tensor"]
        yield [{"mesh.decode_tensor": n} for n in (tensor * 2, tensor // 2) if n]
    yield [
        {"offload.optimizer": optimizer, "offload.networks": networks}
        for optimizer, networks in ((False, False), (True, False), (True, True))
        if (optimizer, networks) != (config.offload.optimizer, config.offload.networks)
    ]
    tokens = [config.micro_batches.tokens * 2, config.micro_batches.tokens // 2]
    yield [
        {"micro_batches.tokens": n, "micro_batches.generator": 0, "micro_batches.discriminator": 0}
        for n in (tokens if fits else tokens[::-1])
        if _LEAST_TOKENS <= n <= _MOST_TOKENS
    ]
    place = _REMAT.index(config.remat)
    yield [{"remat": _REMAT[n]} for n in (place - 1, place + 1) if 0 <= n < len(_REMAT)]
    tensor = plan.mesh["tensor"]
    yield [{"mesh.tensor": n, "mesh.fsdp": -1, "mesh.data": 1} for n in (tensor * 2, tensor // 2) if n]


def _rank(plan: Plan) -> tuple[float, float]:
    """The bytes that a plan lacks, and its seconds; the least is best."""
    lacking = sum(max(0.0, program.peak - plan.memory) for program in plan.programs)
    return lacking, sum(plan.step_seconds(stage) or math.inf for stage in plan.config.stages)


def _changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config
