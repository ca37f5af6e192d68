"""The machines that a run can be planned for, and devices of theirs to compile for."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pathlib
import platform
import re
from typing import TYPE_CHECKING

from gadjax.errors import UserError
from gadjax.parallel.chips import CHIPS, Chip

if TYPE_CHECKING:
    import jax  # reads the environment on import, so only after `prepare_process`

_MOST_DEVICES = {"tpu": 16384, "cuda": 65536, "cpu": 1024}  # virtual CPUs are threads of this process

# What XLA asks of a GPU beside `Chip`: cores; bytes of L2, shared memory and its opt-in limit; clock in GHz.
_CUDA_DETAILS = {
    "h100": (132, 52_428_800, 233_472, 232_448, 1.98),
    "h200": (132, 52_428_800, 233_472, 232_448, 1.98),
    "a100": (108, 41_943_040, 167_936, 166_912, 1.41),
    "l4": (58, 50_331_648, 102_400, 101_376, 2.04),
    "t4": (40, 4_194_304, 65_536, 65_536, 1.59),
}
# Environment variables of a process that compiles for TPUs and has none.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise libtpu waits for a metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no chip from another process
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    # libtpu asks a metadata server for these, and prints that there is none. What is compiled does not depend on them.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips of one kind in some shape."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)


def parse_topology(name: str) -> Target:
    """The target that `v5p:2x4x4` (a TPU slice), `h100:2x8` (hosts x GPUs) or `cpu:8` (virtual devices) names.

    Raises:
      UserError: there is no such chip, or the shape does not suit it.
    """
    chip_name, _, shape = name.partition(":")
    if chip_name not in CHIPS or not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", shape):
        raise UserError(
            f"--topology={name} is not known: write CHIP:SHAPE, such as v5p:2x4x4, v6e:8x8, v5e:16x16 (TPU slices), "
            f"h100:2x8 (hosts x GPUs) or cpu:8; chips are {', '.join(CHIPS)}"
        )
    target = Target(name, CHIPS[chip_name], tuple(map(int, shape.split("x"))))
    dimensions = {"tpu": (3,) if chip_name == "v5p" else (2,), "cuda": (1, 2), "cpu": (1,)}[target.chip.platform]
    if len(target.shape) not in dimensions:
        example = {"tpu": "v5p:2x4x4 or v6e:8x8", "cuda": "h100:2x8", "cpu": "cpu:8"}[target.chip.platform]
        raise UserError(f"--topology={name} has {len(target.shape)} dimensions: write it like {example}")
    most = _MOST_DEVICES[target.chip.platform]
    if target.count > most:
        raise UserError(f"--topology={name}: at most {most} devices can be planned for; give fewer")
    return target


def prepare_process(target: Target) -> None:
    """Sets the environment so that JAX looks for no accelerator. Call it before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A program's text then holds no lines of source files: it is the same wherever the package and its caller are.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    if target.chip.platform != "cpu":  # JAX would write programs to its cache that it cannot read from there
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    for name, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if target.chip.platform == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={target.count}".strip()


def devices(target: Target) -> list[jax.Device]:
    """Devices to compile for; neighbours in the list are close to each other.

    Raises:
      UserError: the package that compiles for them is not installed, or it knows no such topology.
    """
    if target.chip.platform == "cpu":
        import jax

        return jax.devices("cpu")[: target.count]
    from jax.experimental import topologies

    try:
        if target.chip.platform == "tpu":
            bounds = {"chips_per_host_bounds": [1, 1, 1]} if target.count == 1 else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=target.name, **bounds)
        else:
            hosts, gpus = target.shape if len(target.shape) == 2 else (1, *target.shape)
            shape = f"1x{hosts}x{gpus}"
            found = topologies.get_topology_desc(platform="cuda", topology=shape, target_config=gpu_config(target.chip))
    except Exception as error:  # the plugins raise errors of any type
        raise UserError(_why_not(target, error)) from None
    return list(found.devices)


def described(target: Target) -> str:
    """All that the compiler is told of a target, or reads of this machine if programs for CPUs are compiled."""
    details = {"tpu": lambda: "", "cuda": lambda: gpu_config(target.chip), "cpu": _this_cpu}[target.chip.platform]()
    return f"{target.name}\n{details}"


def _this_cpu() -> str:
    """The instructions that this machine's CPU has, and the number of cores that this process may use."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kept), str(len(os.sched_getaffinity(0)))])


def gpu_config(chip: Chip) -> str:
    """XLA's description of a GPU that is not here, a `GpuTargetConfigProto` as text."""
    cores, cache, shared, optin, clock = _CUDA_DETAILS[chip.name]
    major, minor = chip.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: {1024 if major == 7 else 1536 if (major, minor) == (8, 9) else 2048}
  core_count: {cores}
  fpus_per_core: {128 if chip.name in ("h100", "h200", "l4") else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {int(chip.memory)}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 }}
device_description_str: "{chip.kinds[0]}"
"""


def _why_not(target: Target, error: Exception) -> str:
    """The message for a target that has no devices."""
    package, extra = {"tpu": ("libtpu", "'gadjax[plan]'"), "cuda": ("jax_cuda13_plugin", "'jax[cuda13]'")}[
        target.chip.platform
    ]
    if importlib.util.find_spec(package) is None:
        platform = target.chip.platform.upper()
        return f"--topology={target.name}: planning for {platform} needs {package}: pip install {extra}"
    reason = " ".join(str(error).split())[:300]
    return f"--topology={target.name}: the compiler knows no such topology ({reason}): give a shape that is sold"
