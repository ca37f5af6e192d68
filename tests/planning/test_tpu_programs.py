"""Reading token loops that a TPU's compiler wrote."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.models import layouts
from gadjax.models.logprobs import LOGITS, token_logprobs
from gadjax.parallel import mesh as meshes
from gadjax.planning import targets
from gadjax.planning.compiler import Compiler
from gadjax.planning.hlo import HloProgram
from gadjax.planning.hlo_costs import collectives, logit_positions
from gadjax.planning.planner import checked, make_blueprint
from gadjax.planning.run_programs import run_programs
from gadjax.rollout.sampler import rollout, row_keys

TARGET = targets.parse_topology("v5e:2x2")
FIELDS = {"stages": ("warmup", "gad"), "data.heldout": "", "mesh.decode_tensor": 2, "data.max_response_length": 32}


@pytest.fixture(scope="module")
def devices():
    """Devices of a slice that is not here."""
    pytest.importorskip("libtpu", reason="pip install 'gadjax[plan]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in targets.TPU_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield targets.devices(TARGET)


@pytest.fixture
def sampling(tiny_config, devices):
    """The program of a run's rollout."""
    blueprint = make_blueprint(checked(tiny_config(FIELDS)), devices)
    (program,) = [program for program in run_programs(blueprint) if program.name == "rollout"]
    return program


def compiled(program):
    (found,) = Compiler(TARGET, list(program.blueprint.mesh.devices.flat)).compile([program])
    return found


def smallest_weight(program):
    """Bytes of half of the smallest kernel (the keys'), a device's part."""
    config = program.model.config
    return config.hidden_size * config.num_kv_heads * config.head_dim * 2 // 2


def test_no_weight_is_gathered(sampling):
    found = compiled(sampling)
    looped = [traffic for traffic in found.collectives if traffic.in_token_loop]
    assert {traffic.op for traffic in looped} == {"all-reduce"}
    assert found.gathered < smallest_weight(sampling)


def test_weights_that_are_gathered_are_reported(sampling):
    """The control: in the layout of training, each token of a rollout gathers all weights."""
    blueprint = sampling.blueprint
    model = blueprint.generator

    def function(blueprint):
        def sample(params, batch, key):
            keys = row_keys(key, batch["row"])
            settings = blueprint.sampling(1.0)
            return rollout(blueprint.generator, params, batch["prompt"], batch["prompt_length"], keys, 2, settings)[0]

        return jax.jit(sample)

    params = layouts.abstract_params(model, blueprint.mesh, model.config.dtype)
    _, batch, key = sampling.given()
    batch = meshes.with_shardings(batch, dict.fromkeys(batch, meshes.rows(blueprint.mesh)))
    found = compiled(dataclasses.replace(sampling, function=function, given=lambda: (params, batch, key), model=model))
    table = model.config.vocab_size * model.config.hidden_size * 2
    assert found.gathered == table > smallest_weight(sampling)
    gathered = [traffic for traffic in found.collectives if traffic.bytes == table and traffic.in_token_loop]
    assert {(traffic.op, traffic.times) for traffic in gathered} == {("all-gather", 32)}
    assert len(gathered) == 2  # of the embeddings, and of the head


LAYERS, TOKENS = 6, 48


def array(mesh, shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*axes)))


@pytest.mark.parametrize(("size", "scanned"), [(1024, True), (4096, False)])
def test_gathers_of_a_loop_are_counted(devices, size, scanned):
    """A layer's weights are gathered for each token. If layers are unrolled, fusions hold the gathers in parts."""
    mesh = meshes.make_mesh(1, 4, 1, devices)
    whole = NamedSharding(mesh, P())

    def decode(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        def token(state):
            step, x = state
            if scanned:
                return step + 1, jax.lax.scan(layer, x, weights)[0]
            for w in weights:
                x, _ = layer(x, w)
            return step + 1, x

        return jax.lax.while_loop(lambda state: (state[0] < TOKENS) & (state[1][0, 0] < 3), token, (0, x))

    x, weights = array(mesh, (64, size), "fsdp"), array(mesh, (LAYERS, size, size), None, "fsdp")
    program = HloProgram(jax.jit(decode).lower(x, weights).compile().as_text())
    assert scanned or any("async_collective_fusion" in name for name in program.computations)
    gathers = [found for found in collectives(program) if found.op == "all-gather"]
    assert {(found.bytes, found.in_loop) for found in gathers} == {(size * size * 2, True)}
    assert sum(found.times for found in gathers) == LAYERS * TOKENS


def test_sums_of_a_loop_are_told_from_gathers(devices):
    """If weights stay in place, a fusion sums the products, and each device keeps its part."""
    mesh = meshes.make_mesh(1, 4, 1, devices)

    def decode(x, weights):
        return jax.lax.fori_loop(0, TOKENS, lambda _, x: jax.lax.scan(layer, x, weights)[0], x)

    def layer(x, w):
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), NamedSharding(mesh, P(None, "fsdp"))), None

    x, weights = array(mesh, (64, 1024), None, "fsdp"), array(mesh, (LAYERS, 1024, 1024), None, "fsdp")
    program = HloProgram(jax.jit(decode).lower(x, weights).compile().as_text())
    (found,) = collectives(program)
    assert (found.op, found.bytes, found.times) == ("reduce-scatter", 64 * 1024 * 2, LAYERS * TOKENS)


@pytest.mark.slow  # a long compilation; `test_hlo.py` reads such a program of the CPU's compiler
def test_logits_as_large_as_a_weight(devices):
    """Logits too large for the scratch memory, in a backward pass, beside the gradient of the head."""
    mesh = meshes.make_mesh(1, 4, 1, devices)
    hidden, head = (
        array(mesh, (16, 512, 1024), "fsdp"),
        array(mesh, (65536, 1024), None, "fsdp"),
    )
    targets = jax.ShapeDtypeStruct((16, 512), jnp.int32, sharding=NamedSharding(mesh, P("fsdp")))

    def loss(hidden, head, targets):
        source = jnp.broadcast_to(jnp.arange(512), targets.shape)
        return token_logprobs(hidden, head, source, targets, chunk=1024, mesh=mesh)[0].sum()

    program = HloProgram(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, targets).compile().as_text())
    assert logit_positions(program, 65536, {1024, 256}, LOGITS) == 1024
    assert logit_positions(program, 65536, {1024, 256}, "elsewhere") == 0
