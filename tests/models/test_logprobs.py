"""Chunked log-probabilities equal the dense computation, and the dense array never exists."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.models.architecture import ModelConfig
from gadjax.models.logprobs import token_logprobs
from gadjax.models.model import Model
from gadjax.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")

B, L, K, H, V = 3, 13, 10, 5, 31
SOURCE = np.random.default_rng(7).integers(0, L, (B, K))  # out of order, with columns that predict twice and never
EACH = np.tile(np.arange(K), (8, 1))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, L, H)), rng.normal(size=(H, V)), rng.integers(0, V, (B, K))


def dense(hidden, kernel, targets, temperature):
    states = jnp.take_along_axis(hidden, SOURCE[..., None], axis=1)
    logprobs = jax.nn.log_softmax(states @ kernel / temperature)
    chosen = jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logprobs) * logprobs, -1)


def chunked(hidden, kernel, targets, temperature, **options):
    return token_logprobs(hidden, kernel.T, SOURCE, targets, temperature=temperature, **options)


@pytest.mark.parametrize("chunk", [1, 7, 10, 30, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients(inputs, chunk, temperature):
    """Values and gradients, for any size of chunk, with cotangents of both signs."""
    hidden, kernel, targets = inputs
    weights = np.random.default_rng(1).normal(size=(2, B, K))
    with jax.enable_x64(True):

        def loss(function, hidden, kernel):
            logprobs, entropy = function(hidden, kernel, targets, temperature)
            return jnp.sum(weights[0] * logprobs + weights[1] * entropy), (logprobs, entropy)

        ours = functools.partial(chunked, chunk=chunk, entropy_gradient=True)
        grad = lambda f: jax.value_and_grad(functools.partial(loss, f), (0, 1), has_aux=True)(hidden, kernel)  # noqa: E731
        (value, outputs), gradients = grad(ours)
        (expected, exact), exact_gradients = grad(dense)
        assert outputs[0].dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        for a, b in zip((*outputs, *gradients), (*exact, *exact_gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("rows", [8, 3])  # 3 are whole on every device
def test_many_devices(sizes, rows):
    """Values and gradients are those of one device, and the head's gradient has the layout of the stored head."""
    rng = np.random.default_rng(2)
    hidden, head = rng.normal(size=(rows, K, 8)), rng.normal(size=(32, 8))
    targets, weights = rng.integers(0, 32, (rows, K)), rng.normal(size=(2, rows, K))
    mesh = make_mesh(*sizes)
    with jax.enable_x64(True):

        def loss(hidden, head, mesh):
            logprobs, entropy = token_logprobs(
                hidden, head, EACH[:rows], targets, temperature=0.7, chunk=3, entropy_gradient=True, mesh=mesh
            )
            return jnp.sum(weights[0] * logprobs + weights[1] * entropy)

        grad = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
        expected = grad(hidden, head, None)
        placed = jax.device_put(head, NamedSharding(mesh, P("tensor", "fsdp")))
        got = grad(hidden, placed, mesh)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        assert got[1][1].sharding.is_equivalent_to(placed.sharding, 2)


@pytest.mark.parametrize("spread", [True, False])
def test_one_gather_and_one_reduction_of_the_head(spread, largest_in_loops):
    """The head is gathered once, not for each chunk. The control leaves it to the compiler."""
    mesh = make_mesh(1, 4, 2)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    hidden = jax.ShapeDtypeStruct((8, 64, 32), np.float32, sharding=rows)
    targets = jax.ShapeDtypeStruct((8, 64), np.int32, sharding=rows)
    head = jax.ShapeDtypeStruct((96, 32), np.float32, sharding=NamedSharding(mesh, P("tensor", "fsdp")))

    def loss(hidden, head, targets):
        each = jnp.broadcast_to(jnp.arange(64), targets.shape)
        return jnp.sum(token_logprobs(hidden, head, each, targets, chunk=8, mesh=mesh if spread else None)[0])

    largest = largest_in_loops(jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head, targets).compile())
    assert largest == 8 * 32 * 4 if spread else largest > 8 * 32 * 4


def test_finite_differences(inputs):
    """The gradient agrees with finite differences, too."""
    hidden, kernel, targets = inputs
    with jax.enable_x64(True):
        loss = lambda kernel: jnp.sum(chunked(hidden, kernel, targets, 0.7, chunk=4)[0] ** 2)  # noqa: E731
        gradient = jax.grad(loss)(kernel)
        for index in ((0, 0), (2, 7), (4, 30)):
            step = np.zeros_like(kernel)
            step[index] = 1e-6
            difference = (loss(kernel + step) - loss(kernel - step)) / 2e-6
            assert gradient[index] == pytest.approx(float(difference), rel=1e-5, abs=1e-7)


def test_entropy_without_gradient(inputs):
    hidden, kernel, targets = inputs
    for carried in (True, False):
        total = lambda x, carried=carried: jnp.sum(  # noqa: E731
            chunked(x, kernel, targets, 1.0, chunk=4, entropy_gradient=carried)[1]
        )
        assert bool(jnp.any(jax.grad(total)(hidden) != 0)) == carried


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_a_frozen_head_has_no_gradient_and_no_buffer_for_one(mesh):
    """Without the head's gradient, the states' gradient is the same."""
    rng = np.random.default_rng(2)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, K, 8), (32, 8)))
    targets, weights = rng.integers(0, 32, (8, K)), rng.normal(size=(8, K)).astype(np.float32)
    mesh = mesh and make_mesh(*mesh)

    def loss(hidden, head, trains):
        logprobs, _ = token_logprobs(hidden, head, EACH, targets, chunk=3, head_gradient=trains, mesh=mesh)
        return jnp.sum(weights * logprobs)

    grad = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    (of_hidden, of_head), (expected, trained) = grad(hidden, head, False), grad(hidden, head, True)
    np.testing.assert_array_equal(of_hidden, expected)
    assert np.abs(trained).max() > 0.1 and (np.asarray(of_head) == 0).all()

    def sums(trains):
        text = str(jax.make_jaxpr(jax.grad(loss), static_argnums=2)(hidden, head, trains))
        return text.count("dot_general")

    assert sums(False) == sums(True) - 1


def test_extreme_logits():
    """Large logits do not overflow, and a token that has all the probability has the log-probability zero."""
    hidden = np.array([[[1.0]], [[-1.0]]], np.float32)
    kernel = np.array([[1e4, 0.0, -1e4]], np.float32)
    logprobs, entropy = token_logprobs(hidden, kernel.T, np.zeros((2, 1), int), np.array([[0], [2]]))
    np.testing.assert_allclose(logprobs, 0, atol=1e-6)
    np.testing.assert_allclose(entropy, 0, atol=1e-3)


def widest(shapes: list[tuple[int, ...]], vocabulary: int) -> int:
    """The largest number of positions in any buffer with a vocabulary axis."""
    return max(int(np.prod(shape)) // vocabulary for shape in shapes if vocabulary in shape)


def shapes_of_jaxpr(jaxpr) -> list[tuple[int, ...]]:
    shapes = [
        tuple(v.aval.shape) for eqn in jaxpr.eqns for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "shape")
    ]
    for sub in _inner(jaxpr):
        shapes += shapes_of_jaxpr(sub)
    return shapes


def _inner(jaxpr):
    for eqn in jaxpr.eqns:
        for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(leaf, "jaxpr"):
                yield leaf.jaxpr
            elif hasattr(leaf, "eqns"):
                yield leaf


@pytest.mark.parametrize("kind", ["chunked", "dense"])
@pytest.mark.parametrize("tied", [True, False])
def test_no_logits_of_all_positions(kind, tied):
    """Neither the gradient's jaxpr nor its compiled program holds it; the dense version, the control, does."""
    rows, length, chunk, vocabulary, hidden = 4, 64, 16, 509, 8
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        tie_embeddings=tied,
    )
    model = Model(config)
    params = model.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, length)).astype(np.int32)
    fields = tokens, np.broadcast_to(np.arange(length), tokens.shape), np.ones_like(tokens)

    def loss(params):
        decoder = model.bind(params)
        states = decoder(*fields)
        if kind == "chunked":
            options = {"chunk": chunk, "entropy_gradient": True}
            logprobs, entropy = token_logprobs(states, decoder.head, fields[1], tokens, **options)
            return jnp.sum(logprobs) + jnp.sum(entropy)
        return jnp.sum(jax.nn.log_softmax(decoder.logits(states))[..., 0])

    gradient = jax.jit(jax.grad(loss))
    traced = shapes_of_jaxpr(jax.make_jaxpr(gradient)(params).jaxpr)
    text = gradient.lower(params).compile().as_text()
    compiled = [tuple(map(int, found.split(","))) for found in re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)]
    for shapes in (traced, compiled):
        most = widest(shapes, vocabulary)
        if kind == "dense":
            assert most >= rows * length
        else:
            # A chunk's logits, or the table [V, H] itself with its gradient.
            assert most <= max(chunk, hidden)


def test_memory_does_not_follow_the_number_of_targets():
    """More targets per row take no more memory: a plan holds for any mix of prompts and responses."""
    rows, length, width = 4, 256, 512

    def temporaries(count):
        def loss(hidden, head, source, targets):
            return jnp.sum(token_logprobs(hidden * 2, head, source, targets, chunk=16)[0])

        shapes = ((rows, length, width), (64, width), (rows, count), (rows, count))
        arguments = [
            jax.ShapeDtypeStruct(s, t) for s, t in zip(shapes, (np.float32,) * 2 + (np.int32,) * 2, strict=True)
        ]
        return jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(length) - temporaries(length // 2) <= 8 * 4 * rows * length  # numbers per target, no states
