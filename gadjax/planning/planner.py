"""Plans a run: compiles every program of it for a target, and adds up what they need."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from gadjax import hub
from gadjax.config.check import discriminator_checkpoint, field_value, has_heldout, resolve
from gadjax.models.architecture import ModelConfig
from gadjax.models.weights import read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.planning.compiler import Compiler
from gadjax.planning.estimate import CompiledProgram, ProgramEstimate, estimate_program
from gadjax.planning.known_students import ARCHITECTURES
from gadjax.planning.run_programs import run_programs
from gadjax.planning.targets import Target
from gadjax.setup.blueprint import Blueprint, make_method, make_networks
from gadjax.workdir.disk import checkpoint_bytes, export_bytes

# The config fields that a program depends on, of all that a search changes.
_OF_UPDATES = ("mesh.data", "mesh.fsdp", "mesh.tensor", "micro_batches", "remat")
_OF_SAMPLING = ("mesh", "rollout.slots")
_DEPENDS = {
    "weights for sampling": ("mesh",),
    "rollout": _OF_SAMPLING,
    "held-out weights for sampling": ("mesh",),
    "held-out answers": _OF_SAMPLING,
    "two-sample answers": _OF_SAMPLING,
}
_TPU_HOST = 4  # chips of a TPU host
_MANY_PROMPTS = 1024  # if a run measures on all held-out prompts; more would change the size of no batch
_NO_TOKENIZER: dict[str, Any] = {"eos_ids": (1, 2), "pad_id": 0}  # any values: they change no program's size


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimates of a run's programs on a target.

    Attributes:
      rows: of `data.train`, for the length of stages that are in epochs; 0 if the number is not known.
      price: of a device and an hour, in any currency; None if it is not known.
    """

    target: Target
    config: ConfigDict
    mesh: dict[str, int]
    decoding_mesh: dict[str, int]
    micro_batches: dict[str, int]
    parameters: int
    heldout_prompts: int
    programs: tuple[ProgramEstimate, ...]
    checkpoint_bytes: int
    export_bytes: int
    rows: int = 0
    price: float | None = None

    @property
    def memory(self) -> float:
        """Bytes of memory that a device has. Virtual devices share the machine's."""
        chip = self.target.chip
        return chip.memory / self.target.count if chip.platform == "cpu" else chip.memory

    @property
    def host(self) -> int:
        """The most bytes of state in a host's memory, for all of its devices."""
        devices = self.target.shape[-1] if self.target.chip.platform == "cuda" else min(self.target.count, _TPU_HOST)
        return devices * max(program.host for program in self.programs)

    @property
    def misfits(self) -> list[ProgramEstimate]:
        """The programs that do not fit a device."""
        return [program for program in self.programs if program.compiled.failure or program.peak > self.memory]

    @property
    def samples(self) -> int:
        """Number of samples in a step."""
        return self.config.batch_size * self.config.rollout.num_samples

    @property
    def slots(self) -> int:
        """Number of samples whose caches are in memory at once, over all devices."""
        return min(self.config.rollout.slots or self.samples, self.samples)

    def step_seconds(self, stage: str) -> float | None:
        """Lower bound of a step's seconds, its programs one after another. None if one did not compile."""
        bounds = [program.bound for program in self.programs if stage in program.stages]
        return sum(bound for bound in bounds if bound is not None) if None not in bounds else None

    @property
    def lengths(self) -> dict[str, int]:
        """The steps of each stage, where they are known."""
        sections = {stage: self.config[stage] for stage in self.config.stages}
        epoch = self.rows // self.config.batch_size
        steps = {stage: section.steps or round(section.epochs * epoch) for stage, section in sections.items()}
        return {stage: count for stage, count in steps.items() if count}

    @property
    def hours(self) -> float | None:
        """Lower bound of the run's hours, without measurements. None if a step or a stage's length is not known."""
        seconds = [self.step_seconds(stage) for stage in self.config.stages]
        if None in seconds or len(self.lengths) < len(seconds):
            return None
        return sum(self.lengths[stage] * self.step_seconds(stage) for stage in self.config.stages) / 3600

    @property
    def cost(self) -> float | None:
        """Lower bound of what the devices of the run cost. None if its hours or the price are not known."""
        hours = self.hours
        return None if hours is None or self.price is None else hours * self.target.count * self.price


def make_plan(config: ConfigDict, compiler: Compiler, known: dict[Any, CompiledProgram] | None = None) -> Plan:
    """Compiles every program of a run.

    Args:
      config: of a run. `data.train` need not exist; all prompts and answers have the length that `data` allows.
      compiler: for the target to plan for.
      known: programs that were compiled for other settings of the same config. New ones are added to it.

    Raises:
      UserError: the config cannot work, or not on this many devices.
    """
    config = checked(config)
    blueprint = make_blueprint(config, compiler.devices)
    known = {} if known is None else known
    programs = list(run_programs(blueprint))
    keys = [
        (program.name, *(str(field_value(config, field)) for field in _DEPENDS.get(program.name, _OF_UPDATES)))
        for program in programs
    ]
    new = {key: program for key, program in zip(keys, programs, strict=True) if key not in known}
    known |= zip(new, compiler.compile(new.values()), strict=True)
    chip = compiler.target.chip
    estimates = [estimate_program(program, known[key], chip) for key, program in zip(keys, programs, strict=True)]
    return Plan(
        target=compiler.target,
        config=config,
        mesh=dict(blueprint.mesh.shape),
        decoding_mesh=dict(blueprint.sampler.mesh.shape),
        micro_batches=_micro_batches(blueprint),
        parameters=blueprint.generator.num_params(),
        heldout_prompts=blueprint.heldout_prompts,
        programs=tuple(estimates),
        checkpoint_bytes=checkpoint_bytes(blueprint),
        export_bytes=export_bytes(blueprint),
    )


def checked(config: ConfigDict) -> ConfigDict:
    """The resolved config. If it names no training data, the run is taken to have training and held-out data."""
    config = config.copy_and_resolve_references()
    if not config.data.train:
        with config.unlocked():
            config.data.train, config.data.heldout = "unnamed", config.data.heldout or "unnamed"
    return resolve(config)


def make_blueprint(config: ConfigDict, devices: list[jax.Device]) -> Blueprint:
    """A run's blueprint on devices that need not be here, from the student's config.json."""
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    student, named = (read_architecture(config.student), config.student), discriminator_checkpoint(config)
    discriminator = None if named is None else (read_architecture(named), named)
    return Blueprint(
        config=config,
        mesh=mesh,
        **make_networks(config, mesh, student, discriminator),
        **_NO_TOKENIZER,
        prompt_width=config.data.max_prompt_length,
        heldout_prompts=(config.evaluation.prompts or _MANY_PROMPTS) if has_heldout(config) else 0,
    )


def read_architecture(student: str) -> ModelConfig:
    """The architecture of a known student, of a directory, or of a hub id, whose config.json is fetched."""
    if student in ARCHITECTURES:
        return ModelConfig.from_hf(ARCHITECTURES[student], student)
    return read_hf_config(hub.local_directory(student, ["config.json"]))[0]


def _micro_batches(blueprint: Blueprint) -> dict[str, int]:
    """Micro-batches of each network in the last stage that has it."""
    methods = [make_method(blueprint, stage) for stage in blueprint.config.stages]
    found = {"generator": methods[-1].generator_micro_batches}
    if methods[-1].discriminator is not None:
        found["discriminator"] = methods[-1].discriminator_micro_batches
    return found
