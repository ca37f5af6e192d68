"""Parses the text of a compiled program (HLO), and counts how often each of its instructions runs.

XLA's own cost analysis counts a loop's body once, and reports nothing on CUDA.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

_HEADER = re.compile(r"(?:(ENTRY) )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    in_main_memory: bool  # False: in the scratch memory of a core

    @property
    def bytes(self) -> int:
        """Size of the elements, without padding."""
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype[1:3]) or 8)
        return math.ceil(math.prod(self.shape) * bits / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]  # its result
    opcode: str
    operands: tuple[str, ...]
    called: tuple[tuple[str, str], ...]  # (attribute, computation): ("body", "region_1"), ...
    trips: int | None  # of a loop, where XLA knows it
    op_name: str  # the operation of the JAX program that it was compiled from
    channel: str
    constant: int | None  # value of an integer constant
    parameter: int | None  # index among its computation's parameters

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Bytes of the result that lie in the main memory."""
        return sum(array.bytes for array in self.arrays if array.in_main_memory)

    @property
    def loop_name(self) -> str:
        """The innermost `jax.named_scope` that a loop was made in: `b` of `jit(f)/a/b/while`."""
        return self.op_name.removesuffix("/while").rpartition("/")[2]


class HloProgram:
    """One compiled module: its computations, and how often each runs in a call of the program.

    Attributes:
      computations: instructions by the name of their computation.
      entry: name of the computation that the program starts with.
    """

    def __init__(self, text: str, loop_trips: Mapping[str, int] | None = None):
        """Parses `compiled.as_text()`.

        Args:
          text: of the module.
          loop_trips: how often the body of a loop runs each time that the loop is entered, by the `jax.named_scope`
            that the loop was made in. For loops whose end depends on data.
        """
        self.loop_trips = loop_trips or {}
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                lines = self.computations[header[2]] = []
                if header[1]:
                    self.entry = header[2]
            elif match := _INSTRUCTION.match(line):
                lines.append(_parse_instruction(*match.groups()))

    @functools.cached_property
    def repeats(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """How often each computation runs in a call of the program, and the names of the loops around it.

        Computations inside fusions are included. A loop runs as often as `loop_trips` says, else as XLA says, else as
        the largest constant that its condition compares with.
        """
        found: dict[str, tuple[int, tuple[str, ...]]] = {self.entry: (1, ())}
        waiting = [self.entry]
        while waiting:
            name = waiting.pop()
            times, loops = found[name]
            for instruction in self.computations.get(name, ()):
                is_loop = instruction.opcode == "while"
                trips = self._trips(instruction) if is_loop else 1
                around = (*loops, instruction.loop_name) if is_loop else loops
                for _, called in instruction.called:
                    old = found.get(called, (0, ()))
                    new = max(old[0], times * trips), max(old[1], around, key=len)
                    if new != old:
                        found[called] = new
                        waiting.append(called)
        return found

    def check_loop(self, name: str) -> None:
        """Checks that the program has a loop of this name.

        Raises:
          ValueError: it has none.
        """
        if not any(name in loops for _, loops in self.repeats.values()):
            raise ValueError(f"the program has no loop of the name {name}")

    def executed(self) -> Iterator[tuple[Instruction, int]]:
        """Instructions that run by themselves, with how often: not those inside fusions and reductions."""
        applied = self._called("to_apply", lambda opcode: opcode != "call")  # to pairs of elements, by reductions
        for name, (times, _) in self.repeats.items():
            if name not in self.fused | applied:
                for instruction in self.computations.get(name, ()):
                    yield instruction, times

    def inside(self, fusion: Instruction) -> list[Instruction]:
        """The instructions that a fusion holds."""
        return next((self.computations.get(name, []) for how, name in fusion.called if how == "calls"), [])

    @functools.cached_property
    def fused(self) -> set[str]:
        """Computations that fusions hold."""
        return self._called("calls", lambda opcode: opcode == "fusion")

    @functools.cached_property
    def made(self) -> dict[str, Instruction]:
        """All instructions, by name."""
        return {line.name: line for lines in self.computations.values() for line in lines}

    def _called(self, attribute: str, by: Callable[[str], bool]) -> set[str]:
        """The computations that instructions of some opcodes name in an attribute."""
        lines = (line for lines in self.computations.values() for line in lines if by(line.opcode))
        return {name for line in lines for how, name in line.called if how == attribute}

    def _trips(self, loop: Instruction) -> int:
        """How often a loop's body runs each time that the loop is entered."""
        if loop.loop_name in self.loop_trips:
            return self.loop_trips[loop.loop_name]
        if loop.trips is not None:
            return loop.trips
        waiting = [name for how, name in loop.called if how == "condition"]
        bounds = [1]
        while waiting:
            for line in self.computations.get(waiting.pop(), ()):
                waiting += [name for _, name in line.called]
                if line.constant is not None:
                    bounds.append(line.constant)
        return max(bounds)


def _parse_instruction(name: str, rest: str) -> Instruction:
    """One line, `name = type opcode(operands), attributes`, of which `rest` follows the equals sign."""
    # A tuple's type is in parentheses and holds spaces; the opcode follows either kind of type.
    opcode = _OPCODE.search(rest, _end_of(rest, 0) if rest.startswith("(") else 0)
    start = opcode.end() if opcode else len(rest)
    end = _end_of(rest, start - 1) if opcode else len(rest)
    kind, arguments, attributes = rest[: opcode.start() if opcode else 0], rest[start : end - 1], rest[end:]
    trips, op_name, channel = (found.search(attributes) for found in (_TRIPS, _OP_NAME, _CHANNEL))
    called = [
        (how, one.strip("%{} "))
        for how, names in _CALLED.findall(attributes.split(", metadata=")[0])
        for one in names.split(",")
    ]
    is_number = opcode and opcode[1] == "constant" and kind.startswith(("s32[]", "s64[]", "u32[]"))
    return Instruction(
        name=name,
        arrays=tuple(
            Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(" not in layout)
            for dtype, sizes, layout in _ARRAY.findall(kind)
        ),
        opcode=opcode[1] if opcode else "",
        operands=tuple(re.findall(r"%([\w.-]+)", arguments)),
        called=tuple(called),
        trips=int(trips[1]) if trips else None,
        op_name=op_name[1] if op_name else "",
        channel=channel[1] if channel else "",
        constant=int(arguments) if is_number and arguments.lstrip("-").isdigit() else None,
        parameter=int(arguments) if opcode and opcode[1] == "parameter" else None,
    )


def _end_of(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index + 1
    return len(text)
