"""gadjax's side of the benchmarks of steps: the trainer's `StageSteps`, fed with the benchmark's batches.

Only `StepRun` knows how the trainer is put together.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks.harness.models import write_models
from benchmarks.workers.protocol import serve
from gadjax.config import default_config
from gadjax.distill import state as states
from gadjax.distill.state import GadState, TrainState
from gadjax.models import layouts
from gadjax.models.model import Model
from gadjax.models.weights import load_params
from gadjax.planning.planner import checked, make_blueprint
from gadjax.planning.run_programs import run_programs
from gadjax.rollout.sampler import Samples
from gadjax.trainer.replay import Replay
from gadjax.trainer.stage_steps import CompiledParts, StageSteps


class GivenSamples(StageSteps):
    """Steps that are given their samples, so that only the two updates run."""

    samples: Samples | None = None

    def parts(self, step: int) -> CompiledParts:
        parts = super().parts(step)
        if self.samples is not None:
            parts.sample = lambda state, batch, key: self.samples
        return parts


class StepRun:
    """A GAD stage on one device, with its state and its compiled programs."""

    def __init__(self, models: dict[str, str], fields: dict[str, Any]):
        """
        Args:
          models: directories by "generator", "discriminator" and "reference".
          fields: of the config, by dotted names.
        """
        config = default_config().unlock()
        config.stages, config.student, config.remat = ("gad",), models["generator"], "dots"
        config.update_from_flattened_dict(fields)
        blueprint = make_blueprint(checked(config), jax.devices()[:1])
        self.blueprint = dataclasses.replace(blueprint, eos_ids=(), pad_id=0)  # no response ends before its limit
        self.steps = GivenSamples(self.blueprint, "gad", Replay(0))
        method, load = self.steps.method, functools.partial(self._load, models)
        self.state = GadState(
            generator=_create(load("generator", method.generator), method.generator_optimizer),
            discriminator=_create(load("discriminator", method.discriminator), method.discriminator_optimizer),
            reference=load("reference", method.generator),
        )
        self.count = 0

    def _load(self, models: dict[str, str], name: str, model: Model) -> Any:
        abstract = layouts.abstract_params(model, self.blueprint.mesh)
        return load_params(pathlib.Path(models[name]), model.config, abstract)

    def step(self, batch: dict[str, Any], samples: dict[str, Any] | None = None) -> dict[str, Any]:
        """Runs one step, from a host batch to metrics on the host. If `samples` are given, only its two updates run."""
        batch = {name: np.array(value, np.int32) for name, value in batch.items()}
        self.steps.samples = None if samples is None else _samples(samples)
        start = time.perf_counter()
        self.state, metrics = self.steps.run(self.state, batch, self.count, self.count)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        self.count += 1
        numbers = {name: float(value) for name, value in metrics.items()}
        return {"seconds": seconds, "tokens": numbers["tokens"], "metrics": numbers}

    def sample(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Runs only a step's rollout, from a host batch to samples on the host."""
        batch = {name: np.array(value, np.int32) for name, value in batch.items()}
        programs, key = self.steps.programs, jax.random.key(self.count)
        start = time.perf_counter()
        placed = programs.place_batch(batch)
        samples = jax.device_get(programs.sample(self.state.generator.params, placed, key, base=self.state.base))
        seconds = time.perf_counter() - start
        self.count += 1
        return {"seconds": seconds, "tokens": int(samples.lengths.sum())}

    def memory(self) -> dict[str, int]:
        """Bytes of each program of a step, as the compiler reports them: arguments, results and temporaries."""
        found = {}
        for program in run_programs(self.blueprint):
            size = program.trace().lower().compile().memory_analysis()
            total = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
            found[program.name] = total - size.alias_size_in_bytes
        return found


def _create(params: Any, optimizer: Any) -> TrainState:
    return jax.jit(functools.partial(states.create, optimizer=optimizer), donate_argnums=0)(params)


def _samples(fields: dict[str, Any]) -> Samples:
    """`Samples` from tokens [B, N, T], lengths [B, N] and log-probs [B, N, T]."""
    tokens, lengths = np.array(fields["tokens"], np.int32), np.array(fields["lengths"], np.int32)
    logprobs = np.array(fields["logprobs"], np.float32)
    return Samples(tokens, lengths, logprobs, ended=lengths < tokens.shape[-1])


class Side:
    """Handles requests for one of several runs, by name."""

    def __init__(self):
        self.runs: dict[str, StepRun] = {}

    def load(self, models: dict[str, str], fields: dict[str, Any], name: str = "") -> None:
        """See `StepRun`."""
        self.runs[name] = StepRun(models, fields)

    def step(self, batch: dict[str, Any], samples: dict[str, Any] | None = None, name: str = "") -> dict[str, Any]:
        """See `StepRun.step`."""
        return self.runs[name].step(batch, samples)

    def sample(self, batch: dict[str, Any], name: str = "") -> dict[str, Any]:
        """See `StepRun.sample`."""
        return self.runs[name].sample(batch)

    def memory(self, name: str = "") -> dict[str, int]:
        """See `StepRun.memory`."""
        return self.runs[name].memory()

    def write_models(self, folder: str, fields: dict[str, Any]) -> dict[str, str]:
        """See `benchmarks.harness.models`; it stands here because it needs JAX."""
        return write_models(pathlib.Path(folder), fields)


if __name__ == "__main__":
    side = Side()
    serve(**{name: getattr(side, name) for name in ("write_models", "load", "step", "sample", "memory")})
