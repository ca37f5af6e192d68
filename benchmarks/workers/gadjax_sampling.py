"""gadjax's side of the sampling benchmarks. Only `Side.sample` knows how gadjax samples."""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.harness.models import write_models
from benchmarks.harness.parts import seconds_of
from benchmarks.workers.protocol import serve
from gadjax.models import layouts
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model, Params
from gadjax.models.weights import load_params, read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.planning.hlo import HloProgram
from gadjax.rollout.engine import Completion, Engine, queue_width
from gadjax.rollout.sampler import Sampling


class Side:
    """A loaded model, and its engines by the number of slots."""

    model: Model
    params: Params

    def __init__(self):
        self.mesh = meshes.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        self.engines: dict[int, Engine] = {}
        self.programs: dict[tuple[Any, ...], HloProgram] = {}

    def write_models(self, folder: str, fields: dict[str, Any]) -> dict[str, str]:
        """See `benchmarks.harness.models`; it stands here because it needs JAX."""
        return write_models(pathlib.Path(folder), fields)

    def load(self, path: str) -> None:
        """Loads a causal language model of a Hugging Face directory, in float32."""
        config: ModelConfig = read_hf_config(pathlib.Path(path))[0]
        self.model = Model(config, "lm", self.mesh)
        self.params = load_params(pathlib.Path(path), config, layouts.abstract_params(self.model, self.mesh))

    def sample(self, prompts: list[np.ndarray], sampling: Sampling, slots: int) -> list[Completion]:
        """One answer to each prompt, `slots` of them at once."""
        if slots not in self.engines:
            self.engines[slots] = Engine(self.model, self.mesh, batch_size=slots)
        return self.engines[slots].generate(self.params, prompts, sampling)

    def run(self, prompts: list[list[int]], limit: int, temperature: float, slots: int, eos: list[int]):
        """Runs one turn. Returns seconds, tokens, lengths, and the tokens of all answers."""
        arrays = [np.array(prompt, np.int32) for prompt in prompts]
        sampling = Sampling(limit, tuple(eos), temperature=temperature)
        start = time.perf_counter()
        answers = self.sample(arrays, sampling, slots)
        seconds = time.perf_counter() - start
        lengths = [len(answer.tokens) for answer in answers]
        return {
            "seconds": seconds,
            "tokens": sum(lengths),
            "lengths": lengths,
            "answers": [answer.tokens.tolist() for answer in answers],
        }

    def parts(self, prompts: list[list[int]], limit: int, temperature: float, slots: int, eos: list[int]):
        """Seconds of one turn, and of each part's operations as the profiler saw them, summed over threads.

        Operations that run side by side both count, so the parts say how much is done where, not how long it takes.
        """
        program = self._program(prompts, limit, temperature, slots, eos)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                seconds = self.run(prompts, limit, temperature, slots, eos)["seconds"]
            (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
            trace = jax.profiler.ProfileData.from_file(str(file))
        events = (event for plane in trace.planes for line in plane.lines for event in line.events)
        spent = ((event.name, event.duration_ns * 1e-9) for event in events)
        return {"seconds": seconds, "parts": seconds_of(program, spent)}

    def _program(
        self, prompts: list[list[int]], limit: int, temperature: float, slots: int, eos: list[int]
    ) -> HloProgram:
        """The compiled program of these turns, kept for the next round. It has run once."""
        sampling, width = Sampling(limit, tuple(eos), temperature=temperature), queue_width(max(map(len, prompts)))
        key = sampling, slots, len(prompts), width
        if key not in self.programs:
            self.run(prompts, limit, temperature, slots, eos)
            engine = self.engines[slots]
            shapes = engine.abstract_queue(len(prompts), width)
            compiled = engine.sample.lower(self.params, *shapes, sampling, slots).compile()
            self.programs[key] = HloProgram(compiled.as_text())
        return self.programs[key]


if __name__ == "__main__":
    side = Side()
    serve(write_models=side.write_models, load=side.load, run=side.run, parts=side.parts)
