"""What a compiled program costs a device: collectives, bytes that the main memory moves, and the largest arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

from gadjax.planning.hlo import Array, HloProgram, Instruction

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move no bytes themselves: names for memory, or calls whose computations are counted.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "call", "conditional"),
    *("after-all", "partition-id", "replica-id", "opt-barrier"),
}
_COPIES = ("copy-start", "slice-start", "dynamic-slice-start")
_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # opcode: index of the operand that holds the update


class Collective(NamedTuple):
    """One collective instruction."""

    op: str
    bytes: int  # what a device sends or receives, whichever is more
    times: int  # in one call of the program
    loops: tuple[str, ...]  # names of the loops around it, the outermost first
    op_name: str

    @property
    def in_loop(self) -> bool:
        """Whether it stands in any loop."""
        return bool(self.loops)


class Buffer(NamedTuple):
    """An array that some instruction makes, and the first operation of the JAX program that makes one like it."""

    array: Array
    op_name: str


def collectives(program: HloProgram) -> list[Collective]:
    """Every collective of a program, once.

    A TPU's compiler puts one collective into several fusions (its start, work and end), which share a channel.
    """
    found: dict[Any, Collective] = {}
    for name, (times, loops) in program.repeats.items():
        for index, line in enumerate(program.computations.get(name, ())):
            op = line.opcode.removesuffix("-start")
            if op in _COLLECTIVES:
                collective = _collective(program, name, line, op, times, loops)
                # Outside fusions, different collectives may share a channel: all of one `shard_map` do.
                key = (op, line.channel) if name in program.fused and line.channel else (name, index)
                if key not in found or found[key].times < times:
                    found[key] = collective
    return list(found.values())


def _collective(
    program: HloProgram, computation: str, line: Instruction, op: str, times: int, loops: tuple[str, ...]
) -> Collective:
    size = line.size
    if line.opcode.endswith("-start") and len(line.arrays) > 1:  # its result holds the operands too
        size //= 2
    if op == "reduce-scatter":  # its operands are larger than its result
        size = max(size, sum(program.made[name].size for name in line.operands if name in program.made))
    if op == "all-reduce" and "reduce-scatter" in computation:  # a fusion of the sum and each device's slice of it
        op = "reduce-scatter"
    return Collective(op, size, times, loops, line.op_name)


def largest_buffers(program: HloProgram) -> list[Buffer]:
    """The distinct arrays in the main memory, largest first. What only a fusion holds never gets there."""
    found: dict[Array, str] = {}
    for line, _ in program.executed():
        if line.opcode not in _COPIES:
            for array in line.arrays:
                if array.in_main_memory:
                    found.setdefault(array, line.op_name)
    buffers = [Buffer(array, op_name) for array, op_name in found.items()]
    return sorted(buffers, key=lambda buffer: -buffer.array.bytes)


def logit_positions(program: HloProgram, vocabulary: int, hidden: Collection[int], scope: str) -> int:
    """The most positions whose logits, or other arrays of the vocabulary's size, are in memory at once; 0 for none.

    Args:
      program: to look through.
      vocabulary: size of the vocabulary's axis on a device.
      hidden: sizes that the other axis of a weight may have: such an array counts as a weight, its gradient or its
        moment, unless `scope` made it.
      scope: `jax.named_scope` of operations on logits.
    """
    found = 0
    for line, _ in program.executed():
        for array in line.arrays:
            if array.in_main_memory and vocabulary in array.shape:
                others = math.prod(array.shape) // vocabulary
                if others not in hidden or _made_in(program, scope, line, array):
                    found = max(found, others)
    return found


def _made_in(program: HloProgram, scope: str, line: Instruction, array: Array) -> bool:
    """Whether an operation of `scope` makes an array. A fusion has the name of only one of its operations."""
    makers = [line, *(inner for _, name in line.called for inner in program.computations.get(name, ()))]
    named = re.compile(rf"\b{scope}\b")
    return any(array.shape in (a.shape for a in one.arrays) and named.search(one.op_name) for one in makers)


def bytes_moved(program: HloProgram) -> int:
    """Bytes read from and written to a device's main memory in one call."""
    return sum(times * _traffic(program, line) for line, times in program.executed())


def _traffic(program: HloProgram, line: Instruction) -> int:
    """Bytes that one execution of an instruction reads and writes."""
    if line.opcode in _FREE or line.opcode.endswith("-done"):
        return 0
    if line.opcode in _COPIES:  # between memories: the first two arrays are the source and the copy
        source, copy = line.arrays[:2]
        return copy.bytes * (source.in_main_memory + copy.in_main_memory)
    if line.opcode in _SLICES:
        return 2 * line.bytes
    if line.opcode == "fusion":
        return _fusion_traffic(program, line)
    operands = [program.made[name].bytes for name in line.operands if name in program.made]
    if line.opcode in _IN_PLACE:
        return 2 * operands[_IN_PLACE[line.opcode]]
    return line.bytes + sum(operands)


def _fusion_traffic(program: HloProgram, line: Instruction) -> int:
    """Bytes of a fusion. An operand that is only sliced counts as the slices; one updated in place, as the update."""
    fused = program.inside(line)
    made = {inner.name: inner for inner in fused}
    written = line.bytes
    for update in fused:
        if update.opcode in _IN_PLACE and update.arrays[0] in line.arrays:
            written += made[update.operands[_IN_PLACE[update.opcode]]].bytes - update.bytes
    read = sum(_bytes_read(program, inner, fused) for inner in fused if inner.opcode == "parameter")
    return max(written, 0) + read


def _bytes_read(program: HloProgram, array: Instruction, fused: list[Instruction]) -> int:
    """Bytes that a fusion reads of one of its parameters, or of a view of one.

    On TPUs a fusion may hold another fusion.
    """
    read, used = 0, False
    for user in fused:
        for index, name in enumerate(user.operands):
            if name != array.name:
                continue
            used = True
            if user.opcode in _SLICES and index == 0:
                read += user.bytes
            elif user.opcode == "bitcast":
                read += _bytes_read(program, user, fused)
            elif user.opcode == "fusion":
                inside = program.inside(user)
                read += sum(_bytes_read(program, inner, inside) for inner in inside if inner.parameter == index)
            elif user.opcode not in _IN_PLACE or index != 0:
                return array.bytes
    return min(read, array.bytes) if used else array.bytes
