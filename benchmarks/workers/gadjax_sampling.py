"""gadjax's side of the sampling benchmarks. `sample` is the one place that knows how gadjax samples."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import numpy as np

from benchmarks.harness.models import write_models
from benchmarks.workers.protocol import serve
from gadjax.models.config import ModelConfig
from gadjax.models.model import Model, Params
from gadjax.models.weights import load_params, read_hf_config
from gadjax.parallel import mesh as layout
from gadjax.rollout.engine import Answer, Engine
from gadjax.rollout.sampler import Sampling


class Side:
    """A loaded model, and its engines by the number of slots."""

    model: Model
    params: Params

    def __init__(self):
        self.mesh = layout.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        self.engines: dict[int, Engine] = {}

    def write_models(self, folder: str, fields: dict[str, Any]) -> dict[str, str]:
        """See `benchmarks.harness.models`; here, since it needs JAX."""
        return write_models(pathlib.Path(folder), fields)

    def load(self, path: str) -> None:
        """Loads a causal language model of a Hugging Face directory, in float32."""
        config: ModelConfig = read_hf_config(pathlib.Path(path))[0]
        self.model = Model(config, "lm", self.mesh)
        self.params = load_params(pathlib.Path(path), config, layout.abstract_params(self.model, self.mesh))

    def sample(self, prompts: list[np.ndarray], sampling: Sampling, slots: int) -> list[Answer]:
        """One answer to each prompt, `slots` of them at once."""
        if slots not in self.engines:
            self.engines[slots] = Engine(self.model, self.mesh, batch_size=slots)
        return self.engines[slots].generate(self.params, prompts, sampling)

    def run(self, prompts: list[list[int]], limit: int, temperature: float, slots: int, eos: list[int]):
        """One turn: seconds, tokens, the lengths, and the tokens of all answers."""
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


if __name__ == "__main__":
    side = Side()
    serve(write_models=side.write_models, load=side.load, run=side.run)
