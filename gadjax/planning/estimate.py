"""What a program of a run needs on its target: memory, operations, traffic and time."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

from gadjax.parallel.chips import Chip
from gadjax.planning.flops import count_flops
from gadjax.planning.measured import Measured, Traffic
from gadjax.planning.program import RunProgram, bytes_per_device


class Work(NamedTuple):
    """What is known of a program before it is compiled.

    Attributes:
      state: bytes of the arguments that are parts of the state, on a device.
      flops, flops_without_remat: operations of matrix products in one call, with every loop at its bound.
      devices: number of devices that run it.
    """

    state: int
    flops: int
    flops_without_remat: int
    devices: int


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
      compile_seconds: time that compiling took, in the plan that compiled it.
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


def count_work(program: RunProgram, traced: jax.stages.Traced) -> Work:
    """What is known of a program before it is compiled; `traced` is of `RunProgram.trace`."""
    resident = jax.tree.leaves(program.resident)
    state = {id(leaf) for leaf in resident}
    # The operations are counted from the traced program, once more without remat.
    return Work(
        state=bytes_per_device([leaf for leaf in jax.tree.leaves(program.arguments) if id(leaf) in state]),
        flops=count_flops(traced.jaxpr, program.loop_trips),
        flops_without_remat=count_flops(program.trace(remat=False).jaxpr, program.loop_trips),
        devices=len(resident[0].sharding.device_set),
    )


def combine(work: Work, measured: Measured, chip: Chip) -> CompiledProgram:
    """One program's figures, from what was counted and what the compiler says."""
    traffic, seconds = measured.collectives, None
    if measured.moved is not None:
        seconds = {
            "compute": work.flops / (work.devices * chip.flops),
            "memory": measured.moved / chip.bandwidth,
            "links": _link_seconds(traffic, chip, work.devices),
        }
    return CompiledProgram(
        program=measured.program,
        state=work.state,
        flops=work.flops,
        flops_without_remat=work.flops_without_remat,
        moved=measured.moved,
        seconds=seconds,
        collectives=traffic,
        positions=measured.positions,
        gathered=max((t.bytes for t in traffic if t.in_token_loop and t.op != "all-reduce"), default=0),
        largest=measured.largest,
        compile_seconds=measured.compile_seconds,
        failure=measured.failure,
    )


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
