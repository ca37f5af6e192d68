"""Two tiny settings for the tests of the method.

`bigrams`: networks of two tables in float64, whose values a test can write down, compiled in a second.
`decoder`: the real decoder in float32, every parameter random, norms and biases included.

Both come with a ragged batch and ragged samples, their padding poisoned with random ids.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.base import get_config
from gadjax.data.packing import Packed, pack
from gadjax.distill import state as states
from gadjax.distill.method import Method
from gadjax.distill.state import GadState
from gadjax.models.config import ModelConfig, Rope
from gadjax.models.model import Model
from gadjax.parallel import mesh as layout
from gadjax.rollout.sampler import Samples, Sampling
from gadjax.trainer.loop import Position, Run
from gadjax.trainer.programs import Programs, state_shardings
from gadjax.trainer.replay import Replay
from gadjax.trainer.setup import make_method

B, N, P, T, V = 4, 3, 9, 7, 64
EOS = (3, 11, 17, 29)
PROMPT_LENGTHS = (9, 1, 6, 4)
TEACHER_LENGTHS = (2, 7, 1, 5)
SAMPLE_LENGTHS = ((7, 1, 3), (2, 7, 7), (4, 1, 6), (1, 2, 5))


@pytest.fixture(scope="module", autouse=True)
def quick_start() -> Iterator[None]:
    """Tiny networks: compiling them well costs more than it saves."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def bigrams() -> Iterator[Tiny]:
    """Training in float64; sampling in float32, as everywhere."""
    with jax.enable_x64(True):
        yield Tiny(Bigrams("lm"), Bigrams("score"), np.float64)


@pytest.fixture
def decoder() -> Tiny:
    """The real networks: grouped queries, biases and query-key norms, tied."""
    config = ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope=Rope(theta=100.0),
        tie_embeddings=True,
        qkv_bias=True,
        output_bias=True,
        qk_norm=True,
    )
    return Tiny(Model(config, "lm"), Model(config, "score"), np.float32)


class Tiny:
    """Two networks, the data of one step, and what a test needs to run steps on them."""

    def __init__(self, generator: Any, discriminator: Any, dtype: type):
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.dtype = dtype
        self.params = {name: self._random_params(model) for name, model in self.networks.items()}
        self.reference = jax.tree.map(
            lambda leaf: leaf + 0.05 * np.random.default_rng(9).normal(size=leaf.shape).astype(dtype),
            self.params["generator"],
        )
        rng = np.random.default_rng(1)
        ids = lambda *shape: rng.integers(0, V, shape).astype(np.int32)  # noqa: E731
        self.batch = {
            "prompt": ids(B, P),
            "prompt_length": np.array(PROMPT_LENGTHS, np.int32),
            "teacher": ids(B, T),
            "teacher_length": np.array(TEACHER_LENGTHS, np.int32),
            "row": np.arange(B, dtype=np.int32) + 100,
        }
        lengths = np.array(SAMPLE_LENGTHS, np.int32)
        # Log-probs far from any policy's, so that ratios leave the clip on both sides.
        self.samples = Samples(ids(B, N, T), lengths, rng.uniform(-8, -1, (B, N, T)), lengths < T)

    def method(self, stage: str = "gad", **changes: Any) -> Method:
        """The method that the trainer makes of the default config and a few settings fit for the size.

        `changes` are fields of `Method`.
        """
        return dataclasses.replace(make_method(self._setup(_config(), None), stage), **changes)

    def state(self, method: Method, *, reference: bool = True) -> GadState:
        """A fresh state; the KL's reference is another policy, or (False) the generator as it is."""
        params = jax.tree.map(jnp.asarray, self.params)
        optimizers = {"generator": method.generator_optimizer, "discriminator": method.discriminator_optimizer}
        networks = {name: states.create(params[name], optimizers[name]) for name in params}
        return GadState(
            **networks,
            reference=jax.tree.map(jnp.array, self.reference if reference else self.params["generator"]),
        )

    def advantages(self) -> np.ndarray:
        """[B, N], with both signs in each group."""
        return np.random.default_rng(2).normal(size=(B, N)).astype(self.dtype)

    def sequences(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Prompts and responses of the samples without padding, N to a prompt."""
        prompts = [self.batch["prompt"][b, : PROMPT_LENGTHS[b]] for b in range(B) for _ in range(N)]
        responses = [self.samples.tokens[b, n, : SAMPLE_LENGTHS[b][n]] for b in range(B) for n in range(N)]
        return prompts, responses

    def pack(self, prompts: list[np.ndarray], responses: list[np.ndarray], **options: Any) -> Packed:
        """One micro-batch packed by the host, its padding poisoned."""
        return poison(pack(prompts, responses, **{"row_length": 2 * (P + T)} | options))

    def trainer(self, stage: str, mesh: jax.sharding.Mesh | None = None, **settings: Any) -> tuple[Run, Programs]:
        """The trainer as it stands before the first step of a stage, without its files.

        `settings` are dotted fields of the config, with "__" for ".".
        """
        mesh = mesh or layout.make_mesh(1, 1, 1, jax.devices()[:1])
        run = object.__new__(Run)  # without reading weights and data, or opening a workdir
        run.config = _config(**settings)
        run.setup = self._setup(run.config, mesh)
        programs = Programs(make_method(run.setup, stage), mesh)
        method = programs.method
        state = self.state(method)
        run.state = jax.device_put(
            state,
            GadState(
                generator=state_shardings(method.generator, method.generator_optimizer, mesh),
                discriminator=state_shardings(method.discriminator, method.discriminator_optimizer, mesh),
                reference=layout.param_shardings(method.generator, mesh),
            ),
        )
        run.position = Position(stage, 0, 0)
        run.replay = Replay(run.config.discriminator.replay_size // N)
        return run, programs

    def _setup(self, config: Any, mesh: jax.sharding.Mesh | None) -> Any:
        return types.SimpleNamespace(
            config=config,
            mesh=mesh,
            **self.networks,
            sampling=lambda temperature: Sampling(T, EOS, temperature=temperature),
            row_length=2 * (P + T),
            row_multiple=layout.batch_shards(mesh) if mesh else 1,
        )

    def _random_params(self, model: Any) -> Any:
        rng = np.random.default_rng(hash(model.head) % 2 if False else len(model.head))

        def leaf(path, abstract):
            noise = rng.normal(size=abstract.shape)
            is_norm = "scale" in jax.tree_util.keystr(path)
            return (1 + 0.2 * noise if is_norm else 0.3 * noise).astype(self.dtype)

        return jax.tree_util.tree_map_with_path(leaf, model.abstract_params())


def _config(**settings: Any) -> Any:
    config = get_config().unlock()
    config.rollout.num_samples = N
    config.batch_size = B
    config.remat = "none"
    config.logprob_chunk = 3
    config.warmup.generator_learning_rate = config.gad.generator_learning_rate = 1e-2
    config.warmup.discriminator_learning_rate = config.gad.discriminator_learning_rate = 1e-2
    config.gad.kl_coefficient = 0.1
    config.warmup.discriminator_only_steps = 0
    for name, value in settings.items():
        *sections, field = name.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[field] = value
    return config


def poison(rows: Packed) -> Packed:
    """Random ids in the padding; nothing may read them."""
    noise = np.random.default_rng(3).integers(0, V, rows.tokens.shape).astype(np.int32)
    return rows.replace(tokens=np.where(rows.segments == 0, noise, rows.tokens))
