"""Two tiny settings for the tests of the method.

`bigrams`: networks of two tables in float64, whose values a test can write down, compiled in a second.
`decoder`: the real decoder in float32, every parameter random, norms and biases included.

Both come with a ragged batch and ragged samples, whose padding holds random ids.
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

from gadjax.config import default_config
from gadjax.data.packing import Packed, RowShape, pack
from gadjax.distill import state as states
from gadjax.distill.method import Method
from gadjax.distill.rows import PackedByHost, policy_rows, teacher_rows
from gadjax.distill.state import GadState, state_shardings
from gadjax.distill.steps import PureParts
from gadjax.extensions import NO_EXTENSIONS
from gadjax.models import layouts, lora
from gadjax.models.architecture import Lora, ModelConfig, Rope
from gadjax.models.model import Model
from gadjax.parallel import mesh as meshes
from gadjax.rollout.sampler import Samples, Sampling
from gadjax.setup.blueprint import make_method
from gadjax.trainer.replay import Replay
from gadjax.trainer.stage_steps import StageSteps

B, N, P, T, V = 4, 3, 9, 7, 64
ROW_LENGTH = 2 * (P + T)
PACKED = PackedByHost(RowShape(ROW_LENGTH))
EOS = (3, 11, 17, 29, 31, 40)
PROMPT_LENGTHS = (9, 1, 6, 4)
TEACHER_LENGTHS = (2, 7, 1, 5)
SAMPLE_LENGTHS = ((7, 1, 3), (2, 7, 7), (4, 1, 5), (1, 2, 5))
DECODER = ModelConfig(
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


@pytest.fixture(scope="module", autouse=True)
def quick_start(quick_compile: None) -> None:
    """Tiny networks: compiling them well costs more than it saves."""


@pytest.fixture
def bigrams() -> Iterator[Tiny]:
    """Training in float64; sampling in float32, as everywhere."""
    with jax.enable_x64(True):
        yield Tiny(Bigrams("lm"), Bigrams("score"), np.float64)


@pytest.fixture
def likelihoods() -> Iterator[Tiny]:
    """`bigrams` whose discriminator is a language model."""
    with jax.enable_x64(True):
        yield Tiny(Bigrams("lm"), Bigrams("lm"), np.float64)


@pytest.fixture
def decoder() -> Tiny:
    """The real networks, with all that they may have: grouped queries, biases, query-key norms."""
    return Tiny(Model(DECODER, "lm"), Model(DECODER, "score"), np.float32)


@pytest.fixture
def adapted() -> Tiny:
    """The same networks as adapters over one base, both adapters of each projection random."""
    config = dataclasses.replace(DECODER, lora=Lora(rank=3, alpha=4.0))
    return Tiny(Model(config, "lm"), Model(config, "score"), np.float32)


class Tiny:
    """Two networks, the data of one step, and what a test needs to run steps on them."""

    def __init__(self, generator: Any, discriminator: Any, dtype: type):
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.dtype = dtype
        self.params = {
            "generator": lora.trained(random_params(generator, dtype, seed=0)),
            "discriminator": lora.trained(random_params(discriminator, dtype, seed=1)),
        }
        self.reference = lora.trained(random_params(generator, dtype, seed=2))
        self.base = lora.frozen(random_params(generator, dtype, seed=0))
        rng = np.random.default_rng(3)
        ids = lambda *shape: rng.integers(0, V, shape).astype(np.int32)  # noqa: E731
        self.batch = {
            "prompt": ids(B, P),
            "prompt_length": np.array(PROMPT_LENGTHS, np.int32),
            "teacher": ids(B, T),
            "teacher_length": np.array(TEACHER_LENGTHS, np.int32),
            "row": np.arange(B, dtype=np.int32) + 100,
        }
        lengths = np.array(SAMPLE_LENGTHS, np.int32)
        # Log-probs far from the policy's, so that ratios leave the clip and the dual clip on both sides.
        logprobs = rng.uniform(-6.5, -2.5, (B, N, T)).astype(dtype)
        self.samples = Samples(ids(B, N, T), lengths, logprobs, lengths < T)
        self.advantages = rng.normal(size=(B, N)).astype(dtype)

    def method(self, stage: str = "gad", **fields: Any) -> Method:
        """The method that the trainer makes of the config below; `fields` of `Method` replace its own."""
        return dataclasses.replace(make_method(self._setup(tiny_config()), stage), **fields)

    def state(self, method: Method) -> GadState:
        """The state before the first step. The reference is not the generator, so that the KL is not 0."""
        params = jax.tree.map(jnp.array, self.params)
        return GadState(
            generator=states.create(params["generator"], method.generator_optimizer),
            discriminator=states.create(params["discriminator"], method.discriminator_optimizer),
            reference=jax.tree.map(jnp.array, self.reference),
            base=jax.tree.map(jnp.array, self.base),
        )

    def sequences(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Prompts and responses of the samples, N to a prompt, without padding."""
        prompts = [self.batch["prompt"][b, : PROMPT_LENGTHS[b]] for b in range(B) for _ in range(N)]
        responses = [self.samples.tokens[b, n, : SAMPLE_LENGTHS[b][n]] for b in range(B) for n in range(N)]
        return prompts, responses

    def groups(self, method: Method) -> tuple[Packed, Any]:
        """Rows and weights of the discriminator's update on the samples, one sequence a row."""
        return jax.jit(PureParts(method).group_rows)(self.batch, self.samples)

    def policy_rows(self, method: Method) -> tuple[Packed, Any]:
        """Rows of the policy update on the samples, packed, and the sampler's log-probs."""
        rows, sampled = policy_rows(method, self.batch, self.samples, PACKED)
        return poison(rows), sampled

    def teacher_rows(self, method: Method) -> Packed:
        """Rows of the supervised update, packed."""
        return poison(teacher_rows(method, self.batch, PACKED))

    def pack(self, prompts: list[np.ndarray], responses: list[np.ndarray]) -> Packed:
        """One micro-batch packed by the host, without its axis of micro-batches."""
        rows = poison(pack(prompts, responses, row_length=ROW_LENGTH))
        return jax.tree.map(lambda leaf: leaf[0], rows)

    def trainer(
        self, stage: str, mesh: jax.sharding.Mesh | None = None, **settings: Any
    ) -> tuple[StageSteps, GadState]:
        """The trainer's steps of a stage, and the state on the mesh (default: one device).

        `settings` are fields of the config, with "__" for ".".
        """
        mesh = mesh or meshes.make_mesh(1, 1, 1, jax.devices()[:1])
        config = tiny_config(**settings)
        steps = StageSteps(self._setup(config, mesh), stage, Replay(config.discriminator.replay_size // N))
        method = steps.method
        shardings = GadState(
            generator=state_shardings(method.generator, method.generator_optimizer, mesh),
            discriminator=state_shardings(method.discriminator, method.discriminator_optimizer, mesh),
            reference=lora.trained(layouts.param_shardings(method.generator, mesh)),
            base=lora.frozen(layouts.param_shardings(method.generator, mesh)),
        )
        return steps, jax.device_put(self.state(method), shardings)

    def _setup(self, config: Any, mesh: jax.sharding.Mesh | None = None) -> types.SimpleNamespace:
        """Stands in for `gadjax.setup.prepare.Setup`, which reads files."""
        return types.SimpleNamespace(
            config=config,
            mesh=mesh,
            **self.networks,
            sampler=self.networks["generator"],
            sampling=lambda temperature: Sampling(T, EOS, temperature=temperature),
            row_shape=lambda group, adaptive=True: RowShape(
                ROW_LENGTH, meshes.batch_shards(mesh) if mesh else 1, adaptive, share=True
            ),
            extensions=NO_EXTENSIONS,
        )


def tiny_config(**settings: Any) -> Any:
    """The default config with a few settings fit for the size; `settings` as in `Tiny.trainer`."""
    config = default_config().unlock()
    settings = {
        "rollout__num_samples": N,
        "remat": "none",
        "logprob_chunk": 3,
        "warmup__generator_learning_rate": 1e-2,
        "warmup__discriminator_learning_rate": 1e-2,
        "warmup__discriminator_only_steps": 0,
        "seqkd__generator_learning_rate": 1e-2,
        "seqkd__discriminator_learning_rate": 1e-2,
        "soda__generator_learning_rate": 1e-2,
        "gad__generator_learning_rate": 1e-2,
        "gad__discriminator_learning_rate": 1e-2,
        "gad__kl_coefficient": 0.1,
    } | settings
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in settings.items()})
    return config


def random_params(model: Any, dtype: type, seed: int) -> Any:
    """Every parameter random; the scales of norms around 1."""
    rng = np.random.default_rng(seed)

    def leaf(path, abstract):
        noise = rng.normal(size=abstract.shape)
        scale = "scale" in jax.tree_util.keystr(path)
        return (1 + 0.2 * noise if scale else 0.3 * noise).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.abstract_params())


def poison(rows: Packed) -> Packed:
    """Host rows with random ids in their padding, which nothing may read."""
    noise = np.random.default_rng(4).integers(0, V, rows.tokens.shape).astype(np.int32)
    return rows.replace(tokens=np.where(rows.segments == 0, noise, rows.tokens))


@pytest.fixture
def keep_gradient() -> optax.GradientTransformation:
    """An optimizer that moves nothing; its state is the last gradient."""
    return optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda gradients, state, params: (jax.tree.map(jnp.zeros_like, gradients), gradients),
    )


@dataclasses.dataclass(frozen=True)
class BigramConfig:
    """What the sampler and the losses ask a config for."""

    vocab_size: int = V
    hidden_size: int = 8
    intermediate_size: int = 0
    num_layers: int = 0
    num_heads: int = 1
    num_kv_heads: int = 1
    head_dim: int = 1
    dtype: str = "float32"
    lora: None = None
    sliding_window: None = None
    layer_slides: tuple[bool, ...] = ()
    windows = ModelConfig.windows
    forward_flops = ModelConfig.forward_flops


@dataclasses.dataclass(frozen=True)
class Bigrams:
    """Stands in for `gadjax.models.model.Model`: what follows a token depends on it and on its position alone."""

    head: str
    config: BigramConfig = BigramConfig()
    mesh: None = None
    cached_heads: int = 1

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        head = (
            {"head": jax.ShapeDtypeStruct((8, V), np.float64)}
            if self.head == "lm"
            else {"score": jax.ShapeDtypeStruct((8,), np.float64)}
        )
        return {"embed": jax.ShapeDtypeStruct((V, 8), np.float64)} | head

    def logical_axes(self) -> dict[str, tuple[str, ...]]:
        return {"embed": ("vocab", "embed")} | (
            {"head": ("embed", "vocab")} if self.head == "lm" else {"score": ("embed",)}
        )

    def bind(self, params: dict[str, jax.Array]) -> BoundBigrams:
        return BoundBigrams(params)

    def scores(self, params, tokens, positions, segments) -> jax.Array:
        return self.bind(params)(tokens, positions, segments) @ params["score"]


class BoundBigrams:
    """Stands in for `gadjax.models.decoder.Decoder`."""

    def __init__(self, params: dict[str, jax.Array]):
        self.params = params

    def __call__(self, tokens, positions, segments) -> jax.Array:
        embed = self.params["embed"]
        return embed[tokens] * (1 + jnp.sin(positions.astype(embed.dtype)))[..., None]

    @property
    def head(self) -> jax.Array:
        return self.params["head"].T

    def logits(self, hidden) -> jax.Array:
        return hidden @ self.params["head"]

    def prefill(self, tokens, lengths) -> list:
        return []

    def decode(self, tokens, positions, layers, attends) -> jax.Array:
        return self(tokens, positions, None)

    def unstacked_layers(self) -> list:
        return []
