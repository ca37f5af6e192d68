"""What a compiled program's text says of its collectives."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    r"= (\(?.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)")


class Collective(NamedTuple):
    """One instruction: the elements of its largest result on a device, and whether a loop repeats it."""

    op: str
    elements: int
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """Those of a compiled program, `compiled.as_text()`; bodies of loops and all that they call are in the loop."""
    found: list[tuple[str, str, int]] = []
    calls: dict[str, set[str]] = {}
    looped: set[str] = set()
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
            calls[computation] = set()
        for names in _CALLED.findall(line):
            calls[computation] |= {name.strip("% ") for name in names.split(",")}
        if " while(" in line:
            looped |= set(re.findall(r"(?:body|condition)=%?([\w.-]+)", line))
        if match := _COLLECTIVE.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            elements = max(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)
            found.append((computation, match[2], elements))
    waiting = list(looped)
    while waiting:
        for name in calls.get(waiting.pop(), set()) - looped:
            looped.add(name)
            waiting.append(name)
    return [Collective(op, elements, computation in looped) for computation, op, elements in found]


def largest_in_loops(text: str) -> int:
    """Elements that the largest collective inside a loop moves; 0 where there is none."""
    return max((found.elements for found in collectives(text) if found.in_loop), default=0)
