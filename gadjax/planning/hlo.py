"""Reads the text of a compiled program: collectives, the largest buffers, and bytes moved, with loops counted.

XLA's own cost analysis counts a loop's body once and says nothing on CUDA.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_HEADER = re.compile(r"(?:(ENTRY) )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
# Instructions that move nothing themselves: names for memory, or what other lines count.
_FREE = {
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "while",
    "call",
    "conditional",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
}
_COPIES = ("copy-start", "slice-start", "dynamic-slice-start")
_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is the update


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    in_main_memory: bool  # not in the scratch memory of a core

    @property
    def bytes(self) -> int:
        """Of its elements, without padding."""
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype[1:3]) or 8)
        return math.ceil(math.prod(self.shape) * bits / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    called: tuple[tuple[str, str], ...]  # (how, computation)
    trips: int | None
    op_name: str  # where it comes from in the JAX program
    channel: str
    constant: int | None
    parameter: int | None  # its place among those of its computation

    @property
    def size(self) -> int:
        """Bytes of its result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Of its result in the main memory."""
        return sum(array.bytes for array in self.arrays if array.in_main_memory)


class Collective(NamedTuple):
    """One collective instruction."""

    op: str
    bytes: int  # of what a device gives or gets, whichever is more
    times: int  # that it runs in one call of the program
    loops: tuple[str, ...]  # the names of those around it, the outermost first
    op_name: str

    @property
    def in_loop(self) -> bool:
        """Whether any loop repeats it."""
        return bool(self.loops)


class Buffer(NamedTuple):
    """An array that some instruction makes, with one place that makes it."""

    array: Array
    op_name: str


class Program:
    """The text of one compiled module, `compiled.as_text()`.

    `loop_trips`: how often the bodies of some loops run each time that the loop does, by the `jax.named_scope` that the
    loop was made in.
    """

    def __init__(self, text: str, loop_trips: Mapping[str, int] | None = None):
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
                lines.append(_instruction(match))

    @functools.cached_property
    def repeats(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """How often each computation runs in a call of the program, and in which loops; fused ones too.

        A loop whose end depends on data counts as `loop_trips` says, or as its bound: the largest constant that its
        condition compares with.
        """
        found: dict[str, tuple[int, tuple[str, ...]]] = {self.entry: (1, ())}
        waiting = [self.entry]
        while waiting:
            name = waiting.pop()
            times, loops = found[name]
            for instruction in self.computations.get(name, ()):
                is_loop = instruction.opcode == "while"
                trips = self._trips(instruction) if is_loop else 1
                around = (*loops, _loop_name(instruction)) if is_loop else loops
                for _, called in instruction.called:
                    old = found.get(called, (0, ()))
                    new = max(old[0], times * trips), max(old[1], around, key=len)
                    if new != old:
                        found[called] = new
                        waiting.append(called)
        return found

    def collectives(self) -> list[Collective]:
        """Every collective of the program.

        TPUs put them into fusions, several for the start, the work and the end of one: they share a channel.
        """
        found: dict[Any, Collective] = {}
        for name, (times, loops) in self.repeats.items():
            for place, line in enumerate(self.computations.get(name, ())):
                op = line.opcode.removesuffix("-start")
                if op in COLLECTIVES:
                    collective = self._collective(name, line, op, times, loops)
                    # Elsewhere a channel may be that of several: those of a `shard_map` have one.
                    key = (op, line.channel) if name in self._fused and line.channel else (name, place)
                    if key not in found or found[key].times < times:
                        found[key] = collective
        return list(found.values())

    def _collective(
        self, computation: str, line: Instruction, op: str, times: int, loops: tuple[str, ...]
    ) -> Collective:
        sizes = [array.bytes for array in line.arrays]
        size = sum(sizes) // 2 if line.opcode.endswith("-start") and len(sizes) > 1 else sum(sizes)
        if op == "reduce-scatter":  # what it sums is larger than what it leaves
            size = max(size, sum(self._made[name].size for name in line.operands if name in self._made))
        if op == "all-reduce" and "reduce-scatter" in computation:  # with the slice that each keeps, in one fusion
            op = "reduce-scatter"
        return Collective(op, size, times, loops, line.op_name)

    def check_loop(self, name: str) -> None:
        """Nothing, where a loop has the name.

        Raises:
          ValueError: none has.
        """
        if not any(name in loops for _, loops in self.repeats.values()):
            raise ValueError(f"the program has no loop of the name {name}")

    def buffers(self) -> list[Buffer]:
        """The distinct arrays in the main memory, largest first; what a fusion holds inside never gets there."""
        found: dict[Array, str] = {}
        for instruction, _ in self._executed():
            if instruction.opcode in _COPIES:
                continue
            for array in instruction.arrays:
                if array.in_main_memory:
                    found.setdefault(array, instruction.op_name)
        buffers = [Buffer(array, op_name) for array, op_name in found.items()]
        return sorted(buffers, key=lambda buffer: -buffer.array.bytes)

    def positions(self, vocabulary: int, hidden: set[int], scope: str) -> int:
        """The most positions whose logits, or anything else of a vocabulary's size, are held at once; 0 for none.

        Args:
          vocabulary: sizes of that axis on a device.
          hidden: sizes of a weight's other axis: an array of such a size is a weight, or its gradient or moment, unless
            the scope made it.
          scope: `jax.named_scope` of operations on logits.
        """
        found = 0
        for line, _ in self._executed():
            for array in line.arrays:
                if array.in_main_memory and vocabulary in array.shape:
                    others = math.prod(array.shape) // vocabulary
                    if others not in hidden or self._made_in(scope, line, array):
                        found = max(found, others)
        return found

    def _made_in(self, scope: str, line: Instruction, array: Array) -> bool:
        """Whether an operation of a scope makes an array of an instruction; a fusion is named after one of its own."""
        makers = [line, *(inner for _, name in line.called for inner in self.computations.get(name, ()))]
        named = re.compile(rf"\b{scope}\b")
        return any(array.shape in (a.shape for a in one.arrays) and named.search(one.op_name) for one in makers)

    def bytes_moved(self) -> int:
        """Bytes read from and written to the main memory of a device in a call of the program."""
        return sum(times * self._traffic(instruction) for instruction, times in self._executed())

    def _executed(self) -> Iterator[tuple[Instruction, int]]:
        """Instructions that run by themselves, with how often; not the inside of fusions and reductions."""
        for name, (times, _) in self.repeats.items():
            if name not in self._fused | self._applied:
                for instruction in self.computations.get(name, ()):
                    yield instruction, times

    @functools.cached_property
    def _fused(self) -> set[str]:
        return {name for how, name, opcode in self._calls() if how == "calls" and opcode == "fusion"}

    @functools.cached_property
    def _applied(self) -> set[str]:
        """To pairs of elements: the sums of reductions."""
        return {name for how, name, opcode in self._calls() if how == "to_apply" and opcode != "call"}

    def _calls(self) -> Iterator[tuple[str, str, str]]:
        for lines in self.computations.values():
            for line in lines:
                for how, name in line.called:
                    yield how, name, line.opcode

    @functools.cached_property
    def _made(self) -> dict[str, Instruction]:
        return {line.name: line for lines in self.computations.values() for line in lines}

    def _trips(self, loop: Instruction) -> int:
        if _loop_name(loop) in self.loop_trips:
            return self.loop_trips[_loop_name(loop)]
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

    def _traffic(self, line: Instruction) -> int:
        if line.opcode in _FREE or line.opcode.endswith("-done"):
            return 0
        if line.opcode in _COPIES:  # between memories; the first two arrays are the source and its copy
            source, copy = line.arrays[:2]
            return copy.bytes * (source.in_main_memory + copy.in_main_memory)
        operands = [self._made[name].bytes for name in line.operands if name in self._made]
        if line.opcode in _SLICES:
            return 2 * line.bytes
        if line.opcode in _IN_PLACE:
            return 2 * operands[_IN_PLACE[line.opcode]]
        if line.opcode != "fusion":
            return line.bytes + sum(operands)
        return self._fusion_traffic(line, self._inside(line))

    def _inside(self, fusion: Instruction) -> list[Instruction]:
        return next((self.computations.get(name, []) for how, name in fusion.called if how == "calls"), [])

    def _fusion_traffic(self, line: Instruction, fused: list[Instruction]) -> int:
        """An operand that is only sliced counts as its slices; one that is updated in place as the update."""
        updates = [inner for inner in fused if inner.opcode in _IN_PLACE]
        made = {inner.name: inner for inner in fused}
        written = line.bytes
        for update in updates:
            if update.arrays[0] in line.arrays:
                written += made[update.operands[_IN_PLACE[update.opcode]]].bytes - update.bytes
        read = sum(self._read(inner, fused) for inner in fused if inner.opcode == "parameter")
        return max(written, 0) + read

    def _read(self, array: Instruction, fused: list[Instruction]) -> int:
        """Bytes that a fusion reads of a parameter, or of a view of one; fusions stand in fusions on TPUs."""
        read, used = 0, False
        for user in fused:
            for place, name in enumerate(user.operands):
                if name != array.name:
                    continue
                used = True
                if user.opcode in _SLICES and place == 0:
                    read += user.bytes
                elif user.opcode == "bitcast":
                    read += self._read(user, fused)
                elif user.opcode == "fusion":
                    inside = self._inside(user)
                    read += sum(self._read(inner, inside) for inner in inside if inner.parameter == place)
                elif user.opcode not in _IN_PLACE or place != 0:
                    return array.bytes
        return min(read, array.bytes) if used else array.bytes


def _instruction(match: re.Match[str]) -> Instruction:
    name, rest = match.groups()
    # The type of a tuple is in parentheses, with spaces; an opcode follows either kind of type.
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


def _loop_name(loop: Instruction) -> str:
    """The innermost scope that a loop was made in: `b` of `jit(f)/a/b/while`."""
    return loop.op_name.removesuffix("/while").rpartition("/")[2]


def _end_of(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)
