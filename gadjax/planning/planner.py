"""A plan: every program of a run on a target, and what it says together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from gadjax import hub
from gadjax.config.check import field_value, resolve
from gadjax.models.architecture import ModelConfig
from gadjax.models.weights import read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.planning.estimate import CompiledProgram, ProgramEstimate, compile_program, estimate_program
from gadjax.planning.known_students import ARCHITECTURES
from gadjax.planning.run_programs import run_programs
from gadjax.planning.targets import Target
from gadjax.setup.blueprint import Blueprint, make_method, make_networks

# What a program depends on, of all that a search changes.
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
_MANY_PROMPTS = 1024  # where all held-out ones are measured on: more change the size of no batch
_NO_TOKENIZER = {"eos_ids": (1, 2), "pad_id": 0}  # their values change no program's size


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimates of a run's programs on a target."""

    target: Target
    config: ConfigDict
    mesh: dict[str, int]
    decoding_mesh: dict[str, int]
    micro_batches: dict[str, int]
    parameters: int
    heldout_prompts: int
    programs: tuple[ProgramEstimate, ...]

    @property
    def memory(self) -> float:
        """Bytes of a device; virtual ones share the machine's."""
        chip = self.target.chip
        return chip.memory / self.target.count if chip.platform == "cpu" else chip.memory

    @property
    def host(self) -> int:
        """Bytes of state in the host memory of a process, at most: of the devices that a host has."""
        devices = self.target.shape[-1] if self.target.chip.platform == "cuda" else min(self.target.count, _TPU_HOST)
        return devices * max(program.host for program in self.programs)

    @property
    def misfits(self) -> list[ProgramEstimate]:
        """Programs that do not fit a device."""
        return [program for program in self.programs if program.compiled.failure or program.peak > self.memory]

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return self.config.batch_size * self.config.rollout.num_samples

    @property
    def slots(self) -> int:
        """Samples whose caches are in memory at once, over all devices."""
        return min(self.config.rollout.slots or self.samples, self.samples)

    def step_seconds(self, stage: str) -> float | None:
        """Lower bound of one step of a stage, its programs one after another; None where one did not compile."""
        bounds = [program.bound for program in self.programs if stage in program.stages]
        return None if None in bounds else sum(bounds)


def make_plan(
    config: ConfigDict,
    target: Target,
    devices: list[jax.Device],
    watch: Callable[[str], None] = lambda name: None,
    known: dict[Any, CompiledProgram] | None = None,
) -> Plan:
    """Compiles every program of a run.

    Args:
      config: of a run; `data.train` need not exist. Prompts and answers are taken to be as long as `data` allows.
      devices: of the target.
      watch: called with the name of each program before it is compiled.
      known: programs that were compiled for other settings of the same config, which is added to.

    Raises:
      UserError: the config cannot work, or not on so many devices.
    """
    config = checked(config)
    blueprint = make_blueprint(config, devices)
    known = {} if known is None else known
    estimates = []
    for program in run_programs(blueprint):
        key = program.name, *(str(field_value(config, field)) for field in _DEPENDS.get(program.name, _OF_UPDATES))
        if key not in known:
            watch(program.name)
            known[key] = compile_program(program, target.chip, target.chip.platform)
        estimates.append(estimate_program(program, known[key], target.chip))
    return Plan(
        target=target,
        config=config,
        mesh=dict(blueprint.mesh.shape),
        decoding_mesh=dict(blueprint.sampler.mesh.shape),
        micro_batches=_micro_batches(blueprint),
        parameters=blueprint.generator.num_params(),
        heldout_prompts=blueprint.heldout_prompts,
        programs=tuple(estimates),
    )


def checked(config: ConfigDict) -> ConfigDict:
    """The resolved config; data need not be named to plan, and then the run has held-out prompts too."""
    config = config.copy_and_resolve_references()
    if not config.data.train:
        with config.unlocked():
            config.data.train, config.data.heldout = "unnamed", config.data.heldout or "unnamed"
    return resolve(config)


def make_blueprint(config: ConfigDict, devices: list[jax.Device]) -> Blueprint:
    """A run's blueprint on devices that need not be here, from the student's config.json alone."""
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    architecture = read_architecture(config.student)
    return Blueprint(
        config=config,
        mesh=mesh,
        **make_networks(config, mesh, (architecture, config.student)),
        **_NO_TOKENIZER,
        prompt_width=config.data.max_prompt_length,
        heldout_prompts=(config.evaluation.prompts or _MANY_PROMPTS) if config.data.heldout else 0,
    )


def read_architecture(student: str) -> ModelConfig:
    """Of a directory, of a student that gadjax has a config for, or of a hub id, of which one file is fetched."""
    if student in ARCHITECTURES:
        return ModelConfig.from_hf(ARCHITECTURES[student], student)
    return read_hf_config(hub.local_directory(student, ["config.json"]))[0]


def _micro_batches(blueprint: Blueprint) -> dict[str, int]:
    """Of each network, in the last stage that has it."""
    methods = [make_method(blueprint, stage) for stage in blueprint.config.stages]
    found = {"generator": methods[-1].generator_micro_batches}
    if methods[-1].discriminator is not None:
        found["discriminator"] = methods[-1].discriminator_micro_batches
    return found
