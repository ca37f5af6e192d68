"""The attention kernels equal the plain attention. Where a kernel cannot run, its compiled program is checked."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gadjax.kernels import choose, splash
from gadjax.kernels.causal_attention import causal_attention, cudnn_attention, plain_attention
from gadjax.kernels.cpu_blocks import block_attention
from gadjax.models.architecture import ModelConfig, Rope
from gadjax.models.model import Model
from gadjax.parallel.mesh import BATCH, make_mesh
from gadjax.segments import BRANCH, Window
from tests.kernels.one_query import normal, one_query

LENGTH = 1408  # of compiled programs, where no other dimension is 1408 or 1536, the size of its whole blocks
SQUARE = re.compile(r"\w+\[[\d,]*\b(?:1408,1408|1536,1536)\]")


def inputs(batch: int, length: int, heads: int, kv_heads: int, head_dim: int):
    """Query, key, value and segments: rows packed to the end, and rows with padding inside and at the end."""
    rng = np.random.default_rng(0)
    shapes = ((batch, length, count, head_dim) for count in (heads, kv_heads, kv_heads))
    segments = np.zeros((batch, length), np.int32)
    segments[::2, : length // 3], segments[::2, length // 3 : length // 2], segments[::2, length // 2 :] = 1, 2, 3
    segments[1::2, : length // 4], segments[1::2, length // 2 : -length // 8] = 1, 1
    return *(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), jnp.asarray(segments)


def with_gradients(attend, query, key, value, segments):
    """The output, and the gradients of a weighted sum of it, padding included."""

    def total(query, key, value):
        out = attend(query, key, value, segments)
        return jnp.sum(out * weights), out

    weights = jnp.asarray(np.random.default_rng(1).normal(size=query.shape), jnp.float32)
    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return out, *gradients


def assert_same(attend, arrays) -> jax.Array:
    """Compares output and gradients with the plain attention's, padding included; returns the output."""
    found = with_gradients(attend, *arrays)
    for name, got, expected in zip("oqkv", found, with_gradients(plain_attention, *arrays), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5, err_msg=name)
    return found[0]


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_causal_attention(kv_heads):
    """A query sees tokens of its segment and of its root, up to itself; a group of heads shares keys."""
    query, key, value = normal(3, 9, 6, 4), normal(3, 9, kv_heads, 4), normal(3, 9, kv_heads, 4)
    branch = 2 + np.array([0, 1, 2]) * BRANCH  # the last row: a sequence, a prompt with two answers, padding
    rows = [1, 1, 1, 2, 2, 3, 3, 3, 3], [1, 1, 1, 1, 1, 1, 0, 0, 0], [1, *branch[[0, 0, 1, 1, 2, 2]], 0, 0]
    segments = np.array(rows)
    out = np.asarray(causal_attention(*map(jnp.asarray, (query, key, value, segments))))
    for b, t in np.ndindex(3, 9):
        if segments[b, t] == 0:
            continue
        seen = [s for s in range(t + 1) if segments[b, s] in (segments[b, t], segments[b, t] % BRANCH)]
        assert len(seen) == (
            t + 1 if b == 1 else [1, 1, 2, 3, 4, 3, 4][t] if b == 2 else [1, 2, 3, 1, 2, 1, 2, 3, 4][t]
        )
        for head in range(6):
            kv = head * kv_heads // 6
            expected = one_query(query[b, t, head], key[b, seen, kv], value[b, seen, kv])
            np.testing.assert_allclose(out[b, t, head], expected, atol=1e-5)
    assert np.isfinite(out).all()  # padding too


def test_windows():
    """A query sees no further back than its window, by positions: a response starts where its prompt ends."""
    query, key, value = normal(3, 9, 4, 4), normal(3, 9, 2, 4), normal(3, 9, 2, 4)
    branch = 2 + np.array([0, 1, 2]) * BRANCH
    segments = np.array(
        ([1, 1, 1, 2, 2, 3, 3, 3, 3], [1, 1, 0, 0, 0, 1, 1, 1, 0], [1, *branch[[0, 0, 1, 1, 1, 2, 2]], 0])
    )
    positions = np.array(([0, 1, 2, 0, 1, 0, 1, 2, 3], [0, 1, 0, 0, 0, 2, 3, 4, 0], [0, 0, 1, 2, 3, 4, 2, 3, 0]))
    arrays = (*map(jnp.asarray, (query, key, value, segments)),)
    for backend in ("blocks", "plain", "splash"):
        window = Window(jnp.asarray(positions), 3)
        out = np.asarray(causal_attention(*arrays, backend=backend, window=window))
        for b, t, head in np.ndindex(3, 9, 4):
            seen = [s for s in range(t + 1) if segments[b, s] in (segments[b, t], segments[b, t] % BRANCH)]
            seen = [s for s in seen if positions[b, t] - positions[b, s] < 3]
            if segments[b, t]:
                assert 1 <= len(seen) <= 3
                expected = one_query(query[b, t, head], key[b, seen, head // 2], value[b, seen, head // 2])
                np.testing.assert_allclose(out[b, t, head], expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [block_attention, functools.partial(cudnn_attention, implementation="xla")])
@pytest.mark.parametrize("size", [1, 17, 70])
@pytest.mark.usefixtures("quick_compile_here")
def test_windows_of_kernels(kernel, size):
    """Results and gradients are the plain attention's, also where whole blocks are out of reach."""
    *arrays, segments = inputs(2, 150, 4, 2, 8)
    positions = jnp.cumsum(jnp.ones_like(segments), axis=1) - 1  # gaps count, which only makes windows shorter
    held = (segments > 0)[..., None, None]
    attends = [functools.partial(attend, window=Window(positions, size)) for attend in (kernel, plain_attention)]
    found, expected = (
        with_gradients(lambda *x, attend=attend: attend(*x) * held, *arrays, segments) for attend in attends
    )
    for name, got, wanted in zip("oqkv", found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5, err_msg=name)


def test_windows_over_a_mesh():
    *arrays, segments = inputs(8, 40, 4, 2, 8)
    window = Window(jnp.broadcast_to(jnp.arange(40), segments.shape), 6)
    expected = block_attention(*arrays, segments, window)
    found = causal_attention(*arrays, segments, make_mesh(2, 2, 2), window=window)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "kv_heads", "head_dim"),
    [(2, 300, 4, 2, 128), (2, 256, 3, 3, 64), (1, 7, 4, 1, 8)],
)
@pytest.mark.usefixtures("quick_compile_here")
def test_splash(batch, length, heads, kv_heads, head_dim):
    attend = functools.partial(causal_attention, backend="splash")
    assert_same(attend, inputs(batch, length, heads, kv_heads, head_dim))


@pytest.mark.parametrize("fused_blocks", [1, 4])
@pytest.mark.usefixtures("quick_compile_here")
def test_splash_of_several_blocks(monkeypatch, fused_blocks):
    """With one fused backward kernel, and with two."""
    monkeypatch.setattr(splash, "_FUSED_BLOCKS", fused_blocks)
    assert splash.block_size(1100, 4, 64) < 1100
    assert_same(functools.partial(causal_attention, backend="splash"), inputs(2, 1100, 2, 1, 64))


@pytest.mark.parametrize(
    ("shape", "heads", "kv_heads", "part"),
    [
        ((2, 2, 2), 4, 2, (1, 2)),  # each device has a part of the keys' heads
        ((1, 2, 4), 8, 2, (2, 2)),  # more devices than heads of the keys
        ((1, 1, 8), 24, 12, (4, 3)),  # a device has queries of several groups
        ((1, 4, 2), 3, 1, (1, 3)),  # heads that do not divide
        ((8, 1, 1), 4, 2, (4, 4)),  # rows that do not divide
    ],
)
@pytest.mark.usefixtures("quick_compile_here")
def test_splash_over_a_mesh(shape, heads, kv_heads, part):
    mesh = make_mesh(*shape)
    attend = functools.partial(causal_attention, mesh=mesh, backend="splash")
    out = assert_same(attend, inputs(4, 40, heads, kv_heads, 64))
    assert out.sharding.shard_shape(out.shape) == (part[0], 40, part[1], 64)


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.usefixtures("quick_compile_here")
def test_splash_in_the_decoder(monkeypatch, remat):
    """Splash works in scanned and checkpointed layers over a mesh."""
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope=Rope(theta=100.0),
        initializer_range=0.2,
        remat=remat,
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 24)), jnp.int32)
    positions, segments = jnp.broadcast_to(jnp.arange(24), tokens.shape), inputs(4, 24, 1, 1, 1)[3]
    params = Model(config, "score").init(jax.random.key(0))

    def gradients(mesh):
        model = Model(config, "score", mesh)

        def total(params):
            return jnp.sum(jnp.where(segments > 0, jnp.sin(model.scores(params, tokens, positions, segments)), 0))

        return jax.jit(jax.grad(total))(params)

    expected = gradients(None)
    monkeypatch.setattr(choose, "attention_backend", lambda *_: "splash")
    found = gradients(make_mesh(1, 2, 4))
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=1e-4), found, expected)


@pytest.mark.parametrize("length", [64, 37])
def test_what_cudnn_is_asked(length):
    """The mask and the flags for cuDNN, given to XLA's attention in its place."""
    attend = functools.partial(cudnn_attention, implementation="xla")
    assert_same(attend, inputs(2, length, 4, 2, 8))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_cpu_is_in_blocks(sizes):
    """A mesh gives one device's numbers, although each device goes through the pairs that its own rows need."""
    arrays = inputs(8, 150, 4, 2, 8)
    expected = block_attention(*arrays)
    np.testing.assert_array_equal(causal_attention(*arrays), expected)
    np.testing.assert_allclose(causal_attention(*arrays, make_mesh(*sizes)), expected, atol=1e-6)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_blocks(itemsize):
    """Sizes are multiples of a TPU's 128 lanes and add little padding."""
    for length in range(1, 6000, 13):
        block = splash.block_size(length, itemsize, 128)
        padded = length + -length % block
        assert block % 128 == 0
        assert block <= 1024
        assert padded - length < 3 * 128 or padded < 1.15 * length
    assert splash.block_size(3584, 2, 128) == 896
    assert splash.block_size(4096, 2, 128) == 1024


def compile_for(platform: str, devices, backend: choose.Backend | None = None) -> str:
    """The compiled forward and backward pass on four devices, of which two share one head of the keys."""
    mesh = make_mesh(1, 2, 2, devices=list(devices))

    def array(*shape: int, heads: str | None = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(BATCH, None, heads)))

    query, key = array(2, LENGTH, 4, 64, heads="tensor"), array(2, LENGTH, 1, 64)
    segments = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32, sharding=NamedSharding(mesh, P(BATCH)))

    def total(query, key, value, segments):
        return jnp.sum(causal_attention(query, key, value, segments, mesh, backend).astype(jnp.float32) ** 2)

    step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    traced = step.trace(query, key, key, segments)
    return traced.lower(lowering_platforms=(platform,)).compile().as_text()


@pytest.fixture(scope="module")
def tpus():
    """Four TPUs to compile for, which are not here."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling needs no TPU that another process may hold
        patch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        yield topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def test_program_for_tpus(tpus):
    """The program has two kernels and no array of the logits' size; the plain attention, the control, has one."""
    text = compile_for("tpu", tpus)
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert not SQUARE.findall(text)
    assert SQUARE.findall(compile_for("tpu", tpus, "plain"))


def test_program_for_cuda(shared):
    """The program has cuDNN's two kernels; only the mask and its gradient, which all heads share, are of size T x T."""
    pytest.importorskip("jax_cuda13_plugin", reason="compiling for CUDA needs jax[cuda13]")
    target = (shared / "tools" / "h100_sxm.txtpb").read_text()
    devices = topologies.get_topology_desc(platform="cuda", topology="1x4x1", target_config=target).devices
    text = compile_for("cuda", devices)
    kernels = re.findall(r"__cudnn\$fmha\w+", text)
    assert kernels == ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
    squares = set(SQUARE.findall(text))
    assert squares
    assert all(re.fullmatch(r"(bf16|s32|pred)\[(1,)*1408,1408\]", found) for found in squares)
    assert any("f32[" in found for found in SQUARE.findall(compile_for("cuda", devices, "plain")))
