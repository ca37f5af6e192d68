"""Assigns each operation of a compiled rollout to a part of sampling."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from gadjax.kernels.cache_spans import WRITES
from gadjax.kernels.group_attention import CACHED
from gadjax.models.logprobs import LOGITS
from gadjax.planning.hlo import HloProgram, Instruction
from gadjax.rollout.sampler import TOKEN_STEPS

PROMPTS, LAYERS, HEAD = "reading prompts", "products with the layers' weights", "product with the head"
ATTENTION, STORING, DRAWING, REST = "attention over caches", "storing keys and values", "drawing tokens", "the rest"
PARTS = (PROMPTS, LAYERS, HEAD, ATTENTION, STORING, DRAWING, REST)
_FLOW = ("while", "conditional", "call")  # last as long as what is in them


def seconds_of(program: HloProgram, events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds of each part of a rollout.

    Args:
      program: the rollout's.
      events: names of instructions with the seconds that they took. Unknown names are skipped.
    """
    lines = (line for lines in program.computations.values() for line in lines if line.opcode not in _FLOW)
    parts = {line.name: _part(program, line) for line in lines}
    found: dict[str, float] = collections.defaultdict(float)
    for name, seconds in events:
        if name in parts:
            found[parts[name]] += seconds
    return dict(found)


def _part(program: HloProgram, line: Instruction) -> str:
    scopes = line.op_name.split("/")
    if TOKEN_STEPS not in scopes:
        return PROMPTS
    if WRITES in scopes:
        return STORING
    if CACHED in scopes:
        return ATTENTION
    if LOGITS in scopes:
        return HEAD if _multiplies(program, line) else DRAWING
    return LAYERS if _multiplies(program, line) else REST


def _multiplies(program: HloProgram, line: Instruction) -> bool:
    inside = (inner for _, name in line.called for inner in program.computations.get(name, ()))
    return line.opcode == "dot" or any(_multiplies(program, inner) for inner in inside)
