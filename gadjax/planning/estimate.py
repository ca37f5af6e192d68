"""One program, compiled for its target and read: memory, work, traffic, collectives, and the time they must take."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax

from gadjax.errors import UserError, first_line
from gadjax.models.logprobs import LOGITS
from gadjax.parallel.chips import GIB, Chip
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
    bytes: int  # of one, on a device
    times: int
    in_token_loop: bool
    origin: str


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What the compiler says of one program. Bytes are per device; work is of all devices together.

    Attributes:
      program: bytes of arguments, results and temporaries while it runs.
      state: bytes of those of its arguments that are parts of the state.
      flops, flops_without_remat: matrix products of one call, with every loop at its bound.
      moved: bytes read from and written to the main memory in one call; None where the compiler gave no program.
      seconds: lower bounds of one call: of computing, of the memory, of the links; None likewise.
      positions: the most positions that something of the vocabulary's size is held for at once.
      gathered: bytes of the largest collective in the token loop that is no sum: as large as a weight, if it is one's.
      largest: shapes and bytes of the largest arrays, with where they come from.
      failure: the compiler's, where it gave up.
    """

    program: int
    state: int
    flops: int
    flops_without_remat: int
    moved: int | None
    seconds: dict[str, float] | None
    collectives: tuple[Traffic, ...]
    positions: int
    gathered: int
    largest: tuple[tuple[str, int, str], ...]
    compile_seconds: float
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class ProgramEstimate:
    """One program of a run on its target.

    Attributes:
      stages: whose steps run it; none for held-out figures.
      resident: bytes on the device that are not its arguments: of the state, as a rule.
      peak: of the program, `resident` and the runtime's reserve.
      host: bytes of a device's state that wait in host memory.
      host_seconds: of moving what it needs from there, and what it does not need to there.
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
        """Seconds of one call at least: computing, memory and links overlap, the host's memory does not.

        None where the compiler gave no program.
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
      platform: as JAX lowers for it.
    """
    start = time.perf_counter()
    traced = program.trace()
    sharding = jax.tree.leaves(program.resident)[0].sharding
    devices = len(sharding.device_set)
    flops = count_flops(traced.jaxpr, program.loop_trips)
    work = {"flops": flops, "flops_without_remat": count_flops(program.trace(remat=False).jaxpr, program.loop_trips)}
    work["state"] = bytes_per_device(_state_arguments(program))
    try:
        # From JAX 0.11 on a Triton kernel asks the context, not the program, which GPU it is for.
        with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
            executable = traced.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        used, largest = _overflow(str(error))
        if used is None:
            raise UserError(f"the {program.name} does not compile: {first_line(error)}") from error
        used += bytes_per_device(program.arguments) * ("temporaries" in str(error))
        return CompiledProgram(
            **work,
            program=used,
            moved=None,
            seconds=None,
            collectives=(),
            positions=0,
            gathered=0,
            largest=largest,
            compile_seconds=time.perf_counter() - start,
            failure=first_line(error),
        )
    memory = executable.memory_analysis()
    size = (
        _unread(program, executable)
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    text = HloProgram(executable.as_text(), program.loop_trips)
    for name in program.loop_trips:
        text.check_loop(name)
    traffic = _traffic(text)
    moved = bytes_moved(text)
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
        positions=logit_positions(text, *_vocabulary(program), LOGITS),
        gathered=max((t.bytes for t in traffic if t.in_token_loop and t.op != "all-reduce"), default=0),
        largest=tuple((str(b.array), b.array.bytes, b.op_name) for b in largest_buffers(text)[:_LARGEST]),
        compile_seconds=time.perf_counter() - start,
    )


def _vocabulary(program: RunProgram) -> tuple[int, set[int]]:
    """The vocabulary's size on a device, and those that the other axis of its weights may have."""
    model = program.model
    tensor, others = model.mesh.shape["tensor"], set(model.mesh.shape.values())
    hidden = model.config.hidden_size
    return model.config.vocab_size // tensor, {1, *(hidden // size for size in {1, *others})}


def _traffic(text: HloProgram) -> tuple[Traffic, ...]:
    """Alike ones together."""
    grouped: dict[tuple, int] = {}
    for found in collectives(text):
        key = found.op, found.bytes, TOKEN_STEPS in found.loops, found.op_name.rpartition("/")[2]
        grouped[key] = grouped.get(key, 0) + found.times
    kinds = [Traffic(op, size, times, looped, origin) for (op, size, looped, origin), times in grouped.items()]
    return tuple(sorted(kinds, key=lambda t: -t.bytes * t.times))


def _link_seconds(collectives: tuple[Traffic, ...], chip: Chip, count: int) -> float:
    """An all-reduce sends everything twice. Beyond a domain of links, only what is not in the token loop goes."""
    seconds = 0.0
    for found in collectives:
        far = chip.domain and count > chip.domain and not found.in_token_loop
        rate = chip.network if far else chip.link
        seconds += found.times * found.bytes * (2 if found.op == "all-reduce" else 1) / rate
    return seconds


def _state_arguments(program: RunProgram) -> list[Any]:
    """Those arguments that are parts of the state: the same leaves."""
    state = {id(leaf) for leaf in jax.tree.leaves(program.resident)}
    return [leaf for leaf in jax.tree.leaves(program.arguments) if id(leaf) in state]


def _unread(program: RunProgram, executable: jax.stages.Compiled) -> int:
    """Bytes of the arguments that the compiled program has not, since it never reads them; on the devices they are."""
    is_none = lambda node: node is None  # noqa: E731
    arguments = jax.tree.leaves(program.arguments, is_leaf=is_none)
    shardings = jax.tree.leaves(executable.input_shardings, is_leaf=is_none)
    shardings += [None] * (program.base is None)  # which is not passed then
    return sum(bytes_per_device(a) for a, sharding in zip(arguments, shardings, strict=True) if sharding is None)


def _overflow(message: str) -> tuple[int | None, tuple[tuple[str, int, str], ...]]:
    """Bytes that a program wanted, of a compiler's refusal, and the allocations that it names."""
    used = _OVERFLOW.search(message)
    if used is None:
        return None, ()
    largest = [
        (shape, int(float(size) * _UNITS[unit]), op_name) for size, unit, op_name, shape in _ALLOCATION.findall(message)
    ]
    return int(float(used[1]) * _UNITS[used[2]]), tuple(largest[:_LARGEST])


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB"
