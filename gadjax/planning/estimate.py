"""Compiles one program for its target, and reads what it needs: memory, operations, traffic and time."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax

from gadjax.errors import UserError, first_line
from gadjax.models.logprobs import LOGITS
from gadjax.parallel.chips import Chip
from gadjax.planning.flops import count_flops
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
class CompiledProgram:
    """What the compiler says of one program. Bytes are of one device, operations of all devices together.

    Attributes:
      program: bytes of arguments, results and temporaries.
      state: bytes of the arguments that are parts of the state.
      flops, flops_without_remat: operations of matrix products in one call, with every loop at its bound.
      moved: bytes that one call reads from and writes to the main memory. None if the compiler gave up.
      seconds: lower bounds of the time of one call for computing, memory and links. None if the compiler gave up.
      collectives: the largest traffic first.
      positions: the most positions whose logits, or arrays as large, are in memory at once.
      gathered: bytes of the largest collective in the token loop other than sums: as large as a weight if one is
        gathered there.
      largest: shape, bytes and origin of the largest arrays.
      compile_seconds: time that tracing and compiling took.
      failure: the compiler's message if it gave up.
    """

    program: int
    state: int
    flops: int
    flops_without_remat: int
    moved: int | None = None
    seconds: dict[str, float] | None = None
    collectives: tuple[Traffic, ...] = ()
    positions: int = 0
    gathered: int = 0
    largest: tuple[tuple[str, int, str], ...] = ()
    compile_seconds: float = 0.0
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class ProgramEstimate:
    """One program of a run on its target.

    Attributes:
      stages: stages whose steps run it; none for held-out figures.
      resident: bytes on a device beside the program, mostly of the state.
      peak: bytes of the program, `resident` and the runtime's reserve.
      host: bytes of a device's state that wait in host memory.
      host_seconds: time to move parts of the state between host memory and device before the program.
    """

    name: str
    stages: tuple[str, ...]
    compiled: CompiledProgram
    resident: int
    peak: int
    host: int
    host_seconds: float

    @property
    def bound(self) -> float | None:
        """Lower bound of the seconds of one call. None if the compiler gave up.

        Computing, memory and links overlap; moves between host and device do not.
        """
        seconds = self.compiled.seconds
        return max(seconds.values()) + self.host_seconds if seconds else None


def estimate_program(program: RunProgram, compiled: CompiledProgram, chip: Chip) -> ProgramEstimate:
    """Adds what is on the device beside a program."""
    resident = bytes_per_device(program.resident) - compiled.state
    return ProgramEstimate(
        name=program.name,
        stages=program.stages,
        compiled=compiled,
        resident=resident,
        peak=int(compiled.program + resident + chip.reserve),
        host=bytes_per_device(program.waiting),
        host_seconds=bytes_per_device(program.moved) / chip.host,
    )


def compile_program(program: RunProgram, chip: Chip, platform: str) -> CompiledProgram:
    """Compiles a program for the devices that its arguments lie on, and reads it.

    Args:
      program: to compile.
      chip: the devices' figures.
      platform: as JAX lowers for it.
    """
    start = time.perf_counter()
    # The operations are counted from the traced program, once more without remat.
    traced = program.trace()
    flops = count_flops(traced.jaxpr, program.loop_trips)
    work: Any = {"flops": flops}
    work["flops_without_remat"] = count_flops(program.trace(remat=False).jaxpr, program.loop_trips)
    state = {id(leaf) for leaf in jax.tree.leaves(program.resident)}
    work["state"] = bytes_per_device([leaf for leaf in jax.tree.leaves(program.arguments) if id(leaf) in state])
    sharding = jax.tree.leaves(program.resident)[0].sharding
    try:
        # From JAX 0.11 on a Triton kernel asks the context, not the program, which GPU it is for.
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            executable = traced.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        # A program that does not fit is reported with what the compiler wanted for it.
        used, largest = _overflow(str(error))
        if used is None:
            raise UserError(f"the {program.name} does not compile: {first_line(error)}") from error
        used += bytes_per_device(program.arguments) * ("temporaries" in str(error))
        found: Any = {"program": used, "largest": largest, "failure": first_line(error)}
        return CompiledProgram(**work, **found, compile_seconds=time.perf_counter() - start)
    # Everything else is read from the compiled program.
    memory = executable.memory_analysis()
    size = _unread(program, executable) + memory.argument_size_in_bytes + memory.output_size_in_bytes
    size += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
    hlo = HloProgram(executable.as_text(), program.loop_trips)
    for name in program.loop_trips:
        hlo.check_loop(name)
    devices, traffic, moved = len(sharding.device_set), _traffic(hlo), bytes_moved(hlo)
    return CompiledProgram(
        **work,
        program=size,
        moved=moved,
        seconds={
            "compute": flops / (devices * chip.flops),
            "memory": moved / chip.bandwidth,
            "links": _link_seconds(traffic, chip, devices),
        },
        collectives=traffic,
        positions=logit_positions(hlo, *_vocabulary(program), LOGITS),
        gathered=max((t.bytes for t in traffic if t.in_token_loop and t.op != "all-reduce"), default=0),
        largest=tuple((str(b.array), b.array.bytes, b.op_name) for b in largest_buffers(hlo)[:_LARGEST]),
        compile_seconds=time.perf_counter() - start,
    )


def _vocabulary(program: RunProgram) -> tuple[int, set[int]]:
    """The vocabulary's size on a device, and the sizes that the other axis of its weights may have."""
    model = program.model
    tensor, others = model.mesh.shape["tensor"], set(model.mesh.shape.values())
    hidden = model.config.hidden_size
    return model.config.vocab_size // tensor, {1, *(hidden // size for size in {1, *others})}


def _traffic(hlo: HloProgram) -> tuple[Traffic, ...]:
    """The collectives of a program, those alike counted together, the most bytes first."""
    grouped: dict[tuple, int] = {}
    for found in collectives(hlo):
        key = found.op, found.bytes, TOKEN_STEPS in found.loops, found.op_name.rpartition("/")[2]
        grouped[key] = grouped.get(key, 0) + found.times
    kinds = [Traffic(op, size, times, looped, origin) for (op, size, looped, origin), times in grouped.items()]
    return tuple(sorted(kinds, key=lambda t: -t.bytes * t.times))


def _link_seconds(traffic: tuple[Traffic, ...], chip: Chip, devices: int) -> float:
    """Seconds that the links need. An all-reduce sends its bytes twice.

    With more devices than a domain has, everything but the token loop's traffic goes over the network.
    """
    seconds = 0.0
    for found in traffic:
        far = chip.domain and devices > chip.domain and not found.in_token_loop
        rate = chip.network if far else chip.link
        seconds += found.times * found.bytes * (2 if found.op == "all-reduce" else 1) / rate
    return seconds


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
