"""Operations counted from jaxprs, against counts by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gadjax.kernels import kv_cache, triton_decode
from gadjax.kernels.causal_attention import cudnn_attention
from gadjax.kernels.splash import splash_attention
from gadjax.parallel import mesh as meshes
from gadjax.planning.flops import count_flops

pytestmark = pytest.mark.quick

A, B = jnp.zeros((3, 5)), jnp.zeros((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def flops(f, *arguments, **trips):
    return count_flops(jax.make_jaxpr(f)(*arguments), trips)


def test_products_are_counted_and_nothing_else():
    assert flops(lambda a, b: jnp.tanh(a @ b) + 1, A, B) == PRODUCT
    assert flops(jnp.tanh, A) == 0


def test_a_gradient_is_two_more_products_and_remat_one_more():
    loss = lambda a, b: jnp.sum(jnp.tanh(a @ b))  # noqa: E731
    assert flops(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * PRODUCT
    again = jax.checkpoint(loss, policy=jax.checkpoint_policies.nothing_saveable)
    assert flops(jax.grad(again, argnums=(0, 1)), A, B) == 4 * PRODUCT


def test_loops_and_branches():
    scan = lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), None, length=6)  # noqa: E731
    assert flops(scan, A, B) == 6 * PRODUCT
    branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T @ b, lambda: a @ b)  # noqa: E731
    assert flops(branch, A, B) == 3 * PRODUCT


def test_loops_that_end_by_their_data():
    """Nested loops count by the names of their scopes, others by the number that the counter is compared with."""
    step = lambda state: (state[0] + 1, state[1] + jnp.sum(A @ B))  # noqa: E731

    def named(state):
        with jax.named_scope("turns"):
            return jax.lax.while_loop(lambda state: state[1] > 1, step, state)

    def outer():
        with jax.named_scope("rounds"):
            return jax.lax.while_loop(lambda state: state[1] > 2, lambda state: named(step(state)), (0, 0.0))

    assert flops(outer, rounds=4, turns=9) == 4 * (1 + 9) * PRODUCT
    bounded = lambda end: jax.lax.while_loop(lambda s: (s[0] < end) & (s[0] < 6), step, (0, 0.0))  # noqa: E731
    assert flops(bounded, 3) == 6 * PRODUCT
    with pytest.raises(ValueError, match="how often does the loop turns run"):
        flops(outer, rounds=4)


def test_each_device_of_a_shard_map_counts():
    mesh = meshes.make_mesh(8, 1, 1)
    local = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert flops(local, jnp.zeros((24, 5)), B) == 8 * PRODUCT


@pytest.mark.parametrize(
    ("kernel", "backward"),
    [
        (functools.partial(splash_attention, interpret=True), {256: 5, 8192: 7}),
        (functools.partial(cudnn_attention, implementation="xla"), None),
    ],
)
def test_attention_kernels(kernel, backward):
    """Half of the square of logits in two products forward, and five backward, or seven if two kernels share none."""
    heads, size = 4, 128
    for length, products in (backward or {}).items():
        arrays = [jax.ShapeDtypeStruct((2, length, heads, size), jnp.bfloat16)] * 3
        segments = jax.ShapeDtypeStruct((2, length), jnp.int32)
        one = 2 * 2 * heads * length * length * size // 2
        assert flops(kernel, *arrays, segments) == 2 * one
        loss = lambda *inputs: kernel(*inputs).astype(jnp.float32).sum()  # noqa: E731
        assert flops(jax.grad(loss, argnums=(0, 1, 2)), *arrays, segments) == pytest.approx(
            (2 + products) * one, rel=0.01
        )  # and a small product of outputs and their gradients
    if backward is None:  # plain products, of whole squares
        arrays = [jax.ShapeDtypeStruct((2, 64, heads, size), jnp.bfloat16)] * 3
        assert flops(kernel, *arrays, jax.ShapeDtypeStruct((2, 64), jnp.int32)) == 2 * 2 * 2 * heads * 64 * 64 * size


def test_the_decoding_kernel():
    """Two products over every position of the cache, with a query's group filled up to 16."""
    rows, heads, size, positions = 3, 2, 32, 4 * 16
    stored = kv_cache.empty(rows, positions, heads, size, "bfloat16", 16)
    query, lengths = jnp.zeros((rows, heads, 5, size), jnp.bfloat16), jnp.zeros(rows, jnp.int32)
    assert flops(triton_decode.attend, query, stored, lengths) == 2 * 2 * rows * heads * 16 * size * positions
