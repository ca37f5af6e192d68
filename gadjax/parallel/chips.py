"""Data sheets of the chips that gadjax knows: memory, peak arithmetic and bandwidths. Imports no JAX."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import jax  # must not be imported before a plan has set its environment variables

GIB = 2**30
GPU_MEMORY_FRACTION = 0.97  # share of a GPU that JAX allocates; CUDA and the collectives' buffers need the rest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, with the figures of its maker's data sheet.

    Attributes:
      memory: bytes that the compiler or the driver reports.
      kept: share of `memory` that programs cannot have (the runtime's context, collectives' buffers).
      flops: dense matrix products in bfloat16 (T4: float16) with float32 sums, operations per second.
      bandwidth: bytes per second of the main memory.
      link: bytes per second that a device can send to devices of its own domain, over all links.
      domain: number of devices that those links join; 0 means all devices of a slice.
      network: bytes per second that a device can send beyond its domain.
      capability: CUDA compute capability.
      host: bytes per second between a device and its host's memory.
      kinds: names that JAX gives the device (`jax.Device.device_kind`).
    """

    name: str
    platform: Literal["tpu", "cuda", "cpu"]
    memory: float
    kept: float
    flops: float
    bandwidth: float
    link: float
    domain: int = 0
    network: float = 0.0
    capability: tuple[int, int] = (0, 0)
    host: float = 16e9
    kinds: tuple[str, ...] = ()

    @property
    def reserve(self) -> float:
        """Bytes that programs cannot have."""
        return self.kept * self.memory


_TPU_KEEPS = 0.01
_GPU_KEEPS = 1 - GPU_MEMORY_FRACTION
_H100, _H200, _A100 = ("NVIDIA H100 80GB HBM3",), ("NVIDIA H200",), ("NVIDIA A100-SXM4-80GB",)
_CHIPS = (
    Chip("v5p", "tpu", 95.74 * GIB, _TPU_KEEPS, 459e12, 2765e9, 600e9, kinds=("TPU v5", "TPU v5p")),
    Chip("v5e", "tpu", 15.75 * GIB, _TPU_KEEPS, 197e12, 819e9, 200e9, kinds=("TPU v5 lite", "TPU v5e")),
    Chip("v6e", "tpu", 31.25 * GIB, _TPU_KEEPS, 918e12, 1640e9, 448e9, kinds=("TPU v6 lite", "TPU v6e")),
    Chip("h100", "cuda", 84_978_434_048, _GPU_KEEPS, 989e12, 3352e9, 450e9, 8, 50e9, (9, 0), 50e9, _H100),
    Chip("h200", "cuda", 150_754_820_096, _GPU_KEEPS, 989e12, 4800e9, 450e9, 8, 50e9, (9, 0), 50e9, _H200),
    Chip("a100", "cuda", 84_987_740_160, _GPU_KEEPS, 312e12, 2039e9, 300e9, 8, 25e9, (8, 0), 25e9, _A100),
    Chip("l4", "cuda", 23_609_475_072, _GPU_KEEPS, 121e12, 300e9, 32e9, 8, 12e9, (8, 9), kinds=("NVIDIA L4",)),
    Chip("t4", "cuda", 15_828_320_256, _GPU_KEEPS, 65e12, 320e9, 16e9, 8, 6e9, (7, 5), kinds=("Tesla T4",)),
    # One core of a laptop. Its memory is the machine's, which all virtual devices share.
    Chip("cpu", "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0, 0.15e12, 15e9, 10e9),
)
CHIPS = {chip.name: chip for chip in _CHIPS}
_BY_KIND = {kind: chip for chip in _CHIPS for kind in chip.kinds}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device, or None if its figures are not known; a CPU's are not."""
    return _BY_KIND.get(device.device_kind)
