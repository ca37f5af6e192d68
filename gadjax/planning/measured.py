"""Compiles one lowered program, and reads what the compiler made of it: memory, traffic and the largest arrays.

What is read depends on `LoweredProgram` alone, so that it can be kept (`gadjax.planning.kept`).
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax

from gadjax.errors import UserError, first_line
from gadjax.models.logprobs import LOGITS
from gadjax.planning.hlo import HloProgram
from gadjax.planning.hlo_costs import bytes_moved, collectives, largest_buffers, logit_positions
from gadjax.planning.program import RunProgram, bytes_per_device
from gadjax.rollout.sampler import TOKEN_STEPS

_OVERFLOW = re.compile(r"(?:Used |HLO temporaries \()([\d.]+)([KMG])")
_ALLOCATION = re.compile(r"Size: ([\d.]+)([KMG])\s+(?:Operator: op_name=\"([^\"]*)\"\s+)?Shape: (\S+?\])", re.DOTALL)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_LARGEST = 5


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind and size."""

    op: str
    bytes: int  # of one of them, on a device
    times: int
    in_token_loop: bool
    origin: str  # the JAX operation that they were compiled from


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is read from one compiled program, or from the compiler's refusal. Bytes are of one device.

    Attributes:
      program: bytes of arguments, results and temporaries.
      moved: bytes that one call reads from and writes to the main memory. None if the compiler gave up.
      collectives: the largest traffic first.
      positions: the most positions whose logits, or arrays as large, are in memory at once.
      largest: shape, bytes and origin of the largest arrays.
      compile_seconds: time that compiling took.
      failure: the compiler's message if it gave up.
    """

    program: int
    moved: int | None = None
    collectives: tuple[Traffic, ...] = ()
    positions: int = 0
    largest: tuple[tuple[str, int, str], ...] = ()
    compile_seconds: float = 0.0
    failure: str = ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measured:
        """The figures from what `json` made of `dataclasses.asdict`."""
        traffic = tuple(Traffic(**each) for each in values["collectives"])
        largest = tuple((shape, size, origin) for shape, size, origin in values["largest"])
        return cls(**(values | {"collectives": traffic, "largest": largest}))


@dataclasses.dataclass(frozen=True)
class LoweredProgram:
    """A program as the compiler gets it.

    Attributes:
      program: of the run.
      lowered: the same for the platform.
      mesh: of the devices to compile for.
    """

    program: RunProgram
    lowered: jax.stages.Lowered
    mesh: jax.sharding.Mesh

    @property
    def identity(self) -> tuple:
        """Everything of the program that `measure` uses: programs with equal identities have equal figures."""
        return (
            self.lowered.as_text(debug_info=True),  # the names of operations are debug information
            [device.id for device in self.mesh.devices.flat],
            bytes_per_device(self.program.arguments),
            sorted(self.program.loop_trips.items()),
            _vocabulary(self.program),
        )


def lower(program: RunProgram, traced: jax.stages.Traced, platform: str) -> LoweredProgram:
    """Lowers a traced program for the devices that its arguments lie on; `platform` is JAX's name of their kind."""
    mesh = jax.tree.leaves(program.resident)[0].sharding.mesh
    # From JAX 0.11 on a Triton kernel asks the context, not the program, which GPU it is for.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return LoweredProgram(program, traced.lower(lowering_platforms=(platform,)), mesh)


def measure(given: LoweredProgram) -> Measured:
    """Compiles a program and reads it. Threads may call this at the same time: XLA compiles without Python's lock.

    Raises:
      UserError: the program does not compile, for another reason than the devices' memory.
    """
    start, program = time.perf_counter(), given.program
    try:
        with jax.sharding.use_abstract_mesh(given.mesh.abstract_mesh):
            executable = given.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # A program that does not fit is reported with what the compiler wanted for it.
        used, largest = _overflow(str(error))
        if used is None:
            raise UserError(f"the {program.name} does not compile: {first_line(error)}") from error
        used += bytes_per_device(program.arguments) * ("temporaries" in str(error))
        seconds = time.perf_counter() - start
        return Measured(used, largest=largest, failure=first_line(error), compile_seconds=seconds)
    memory = executable.memory_analysis()
    size = _unread(program, executable) + memory.argument_size_in_bytes + memory.output_size_in_bytes
    size += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    hlo = HloProgram(executable.as_text(), program.loop_trips)
    for name in program.loop_trips:
        hlo.check_loop(name)
    return Measured(
        program=size,
        moved=bytes_moved(hlo),
        collectives=_traffic(hlo),
        positions=logit_positions(hlo, *_vocabulary(program), LOGITS),
        largest=tuple((str(b.array), b.array.bytes, b.op_name) for b in largest_buffers(hlo)[:_LARGEST]),
        compile_seconds=time.perf_counter() - start,
    )


def _vocabulary(program: RunProgram) -> tuple[int, list[int]]:
    """The vocabulary's size on a device, and the sizes that the other axis of its weights may have."""
    model = program.model
    tensor, others = model.mesh.shape["tensor"], set(model.mesh.shape.values())
    hidden = model.config.hidden_size
    return model.config.vocab_size // tensor, sorted({1, *(hidden // size for size in {1, *others})})


def _traffic(hlo: HloProgram) -> tuple[Traffic, ...]:
    """The collectives of a program, those alike counted together, the most bytes first."""
    grouped: dict[tuple, int] = {}
    for found in collectives(hlo):
        key = found.op, found.bytes, TOKEN_STEPS in found.loops, found.op_name.rpartition("/")[2]
        grouped[key] = grouped.get(key, 0) + found.times
    kinds = [Traffic(op, size, times, looped, origin) for (op, size, looped, origin), times in grouped.items()]
    return tuple(sorted(kinds, key=lambda t: -t.bytes * t.times))


def _unread(program: RunProgram, executable: jax.stages.Compiled) -> int:
    """Bytes of the arguments that the compiled program never reads. They are on the devices all the same."""
    is_none = lambda node: node is None  # noqa: E731
    arguments = jax.tree.leaves(program.arguments, is_leaf=is_none)
    shardings = jax.tree.leaves(executable.input_shardings, is_leaf=is_none)
    shardings += [None] * (program.base is None)  # an argument that is not passed
    return sum(bytes_per_device(a) for a, sharding in zip(arguments, shardings, strict=True) if sharding is None)


def _overflow(message: str) -> tuple[int | None, tuple[tuple[str, int, str], ...]]:
    """The bytes that a program wanted and the allocations that are named, from a compiler's refusal."""
    used = _OVERFLOW.search(message)
    if used is None:
        return None, ()
    largest = [
        (shape, int(float(size) * _UNITS[unit]), op_name) for size, unit, op_name, shape in _ALLOCATION.findall(message)
    ]
    return int(float(used[1]) * _UNITS[used[2]]), tuple(largest[:_LARGEST])
