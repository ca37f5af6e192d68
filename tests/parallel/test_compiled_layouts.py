"""What the compiler makes of the layouts, read from compiled programs: the results are the same in any layout."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gadjax.config import default_config
from gadjax.data.packing import Packed
from gadjax.distill import state as states
from gadjax.distill.method import Method
from gadjax.distill.state import state_shardings
from gadjax.models import layouts
from gadjax.models.architecture import ModelConfig
from gadjax.models.decoder import Decoder
from gadjax.models.model import Model
from gadjax.parallel import mesh as meshes
from gadjax.planning.hlo import HloProgram
from gadjax.planning.hlo_costs import largest_buffers
from gadjax.rollout.sampler import TOKEN_STEPS, Sampling, rollout, row_keys
from gadjax.trainer.programs import SAMPLED_FROM, Programs

# Layouts are the partitioner's work, which comes before what is skipped.
pytestmark = pytest.mark.usefixtures("quick_compile")

# No two sizes are equal, so that a shape tells which array it is.
CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=640,
    hidden_size=64,
    intermediate_size=192,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    qkv_bias=True,
    remat="full",
)
OPTIMIZER = states.adamw(1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)
B, N, P, T = 8, 2, 4, 6
SMALLEST_WEIGHT = 64 * 4 * 16 // 2 * 4  # bytes of a device's part of the keys' kernel, split over two devices


def abstract(shape, sharding, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def method(model: Model) -> Method:
    return Method.from_config(
        default_config(),
        generator=model,
        sampling=Sampling(T, (2,)),
        generator_optimizer=OPTIMIZER,
        num_samples=N,
        logprob_chunk=16,
    )


def batch(mesh):
    rows = meshes.rows(mesh)
    fields = {"prompt": (B, P), "prompt_length": (B,), "teacher": (B, T), "teacher_length": (B,), "row": (B,)}
    return {name: abstract(shape, rows) for name, shape in fields.items()}


@pytest.mark.parametrize(("sizes", "tensor"), [((1, 8, 1), 1), ((2, 2, 2), 2), ((1, 8, 1), 4), ((2, 2, 2), 4)])
def test_no_weight_is_gathered_in_the_token_loop(monkeypatch, sizes, tensor, largest_in_loops):
    """No array as large as a weight is gathered. The control gathers the head at each token, inside the loop.

    Weights in the training layout alone would be gathered once: the compiler moves that out of the loop.
    """
    mesh = meshes.make_mesh(*sizes)
    model = Model(CONFIG, "lm", mesh)
    sampler = dataclasses.replace(model, mesh=layouts.decoding_mesh(model, mesh, tensor))
    params = layouts.abstract_params(model, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    programs = Programs(dataclasses.replace(method(model), sampler=sampler), mesh)
    weights = layouts.abstract_params(sampler, sampler.mesh, rules=meshes.DECODING_RULES)
    prompts = {name: batch(sampler.mesh)[name] for name in SAMPLED_FROM}
    sample = programs.sample_batch.lower(weights, prompts, key)
    assert largest_in_loops(sample.compile(), TOKEN_STEPS) < SMALLEST_WEIGHT

    def gathering(decoder, hidden):
        pin = jax.lax.with_sharding_constraint
        head = pin(decoder.head * (1 + hidden[0, 0] * 1e-9), NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
        return hidden @ pin(head, meshes.replicated(mesh)).T

    monkeypatch.setattr(Decoder, "logits", gathering)

    def undone(params, batch, key):
        keys = row_keys(key, batch["row"])
        return rollout(model, params, batch["prompt"], batch["prompt_length"], keys, N, Sampling(T, (2,)))[0]

    control = jax.jit(undone).lower(params, batch(mesh), key)
    assert largest_in_loops(control.compile(), TOKEN_STEPS) >= SMALLEST_WEIGHT


@pytest.mark.parametrize(("sizes", "tensor"), [((1, 8, 1), 1), ((1, 8, 1), 4), ((2, 4, 1), 2), ((1, 4, 2), 4)])
def test_weights_move_to_sampling_without_being_whole_anywhere_else(sizes, tensor):
    """Devices exchange slices and gather: none ever holds more of a kernel than the part that it samples with."""
    mesh = meshes.make_mesh(*sizes)
    model = Model(CONFIG, "lm", mesh)
    sampler = dataclasses.replace(model, mesh=layouts.decoding_mesh(model, mesh, tensor))
    programs = Programs(dataclasses.replace(method(model), sampler=sampler), mesh)
    compiled = programs.decoding_params.lower(layouts.abstract_params(model, mesh)).compile()
    kernel = CONFIG.num_layers * CONFIG.hidden_size * CONFIG.intermediate_size
    table = CONFIG.vocab_size * CONFIG.hidden_size
    sizes = [math.prod(buffer.array.shape) for buffer in largest_buffers(HloProgram(compiled.as_text()))]
    assert max(size for size in sizes) <= max(kernel, table) // tensor
    wanted = layouts.param_shardings(sampler, sampler.mesh, meshes.DECODING_RULES)
    shards = lambda sharding, leaf: sharding.shard_shape(leaf.shape)  # noqa: E731
    abstract = model.abstract_params()
    found = jax.tree.map(shards, compiled.output_shardings, abstract)
    assert found == jax.tree.map(shards, wanted, abstract)
    params = model.init(jax.random.key(0))
    moved = programs.decoding_params(jax.device_put(params, layouts.param_shardings(model, mesh)))
    jax.tree.map(np.testing.assert_array_equal, moved, params)


@pytest.mark.parametrize("spread", [True, False])
def test_no_device_holds_the_whole_batch(spread):
    """An update splits its activations over the rows. The control, without constraints, does not."""
    mesh = meshes.make_mesh(1, 8, 1)
    model = Model(CONFIG, "lm", mesh if spread else None)
    rows, columns = 16, 32
    split = meshes.rows(mesh, leading=1)
    wide, narrow = abstract((1, rows, columns), split), abstract((1, rows, columns // 2), split)
    packed = Packed(wide, wide, wide, *[narrow] * 4, abstract((1, rows), meshes.replicated(mesh)))
    state = jax.eval_shape(functools.partial(states.create, optimizer=OPTIMIZER), model.abstract_params())
    state = meshes.with_shardings(state, state_shardings(model, OPTIMIZER, mesh))
    update = Programs(method(model), mesh).update_supervised
    text = update.lower(state, packed).compile().as_text()
    whole = f"f32[{rows},{columns},{CONFIG.intermediate_size}]"
    part = f"f32[{rows // 8},{columns},{CONFIG.intermediate_size}]"
    assert (whole in text, part in text) == (not spread, spread)
