"""One decoder, three ways to run it: whole rows, packed rows, and token by token from a cache."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.models.architecture import ModelConfig, Rope
from gadjax.models.decoder import REMAT_POLICIES
from gadjax.models.model import Model

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=29,
    hidden_size=16,
    intermediate_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope=Rope(theta=100.0),
    qkv_bias=True,
    output_bias=True,
    qk_norm=True,
)
RNG = np.random.default_rng(0)


def random_params(model: Model, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), model.abstract_params())


def alone(length: int):
    """The positions and segments of one sequence."""
    return np.arange(length)[None], np.ones((1, length), np.int32)


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def logits_of(model):
    return jax.jit(model.logits)


@pytest.fixture(scope="module")
def single(logits_of, params):
    """Logits [T, V] of one sequence alone, computed in 16 columns."""

    def run(sequence: np.ndarray):
        tokens = np.zeros((1, 16), np.int32)
        tokens[0, : len(sequence)] = sequence
        segments = (np.arange(16) < len(sequence)).astype(np.int32)[None]
        return np.asarray(logits_of(params, tokens, np.arange(16)[None], segments))[0, : len(sequence)]

    return run


def test_packed_sequences_do_not_see_each_other(single, params, logits_of):
    parts = [RNG.integers(0, 29, length).astype(np.int32) for length in (5, 1, 7)]
    tokens = np.concatenate([*parts, RNG.integers(0, 29, 3)])[None].astype(np.int32)  # with padding
    positions = np.concatenate([*(np.arange(len(part)) for part in parts), np.zeros(3, int)])[None]
    segments = np.repeat([1, 2, 3, 0], [5, 1, 7, 3])[None]
    packed = logits_of(params, tokens, positions, segments)[0]
    start = 0
    for part in parts:
        np.testing.assert_allclose(packed[start : start + len(part)], single(part), atol=1e-5)
        start += len(part)


def test_padding_holds_anything(params, logits_of):
    tokens = RNG.integers(0, 29, (2, 9)).astype(np.int32)
    segments = (np.arange(9) < np.array([[6], [9]])).astype(np.int32)
    positions = np.broadcast_to(np.arange(9), (2, 9))
    other = np.where(segments, tokens, 28 - tokens)
    a, b = (np.asarray(logits_of(params, x, positions, segments)) for x in (tokens, other))
    np.testing.assert_array_equal(a[segments > 0], b[segments > 0])


def test_what_comes_later_does_not_matter(params, logits_of):
    tokens = RNG.integers(0, 29, (1, 9)).astype(np.int32)
    changed = tokens.copy()
    changed[0, 5:] = 28 - changed[0, 5:]
    a, b = (np.asarray(logits_of(params, x, *alone(9)))[0] for x in (tokens, changed))
    np.testing.assert_array_equal(a[:5], b[:5])
    assert np.abs(a[5:] - b[5:]).max() > 1e-2


def test_prefill_and_decode_are_the_forward_pass(model, params, single):
    """Two prompts of different lengths, with three continuations each."""
    width, limit, count = 6, 4, 3
    lengths = np.array([6, 2], np.int32)
    prompt = RNG.integers(0, 29, (2, width)).astype(np.int32)
    responses = RNG.integers(0, 29, (2, count, limit)).astype(np.int32)

    @jax.jit
    def stepwise(params):
        decoder = model.bind(params)
        layers = decoder.unstacked_layers()
        kept = [
            [x.repeat(count, 0) for x in pair]  # [2 * count, P, Nkv, D], one row per sequence
            for pair in decoder.prefill(prompt, lengths - 1)
        ]
        # A layer sees the prompt without its last token, and then the tokens of the steps before.
        seen = np.arange(width)[None] < (lengths - 1).repeat(count)[:, None]
        tokens = np.concatenate([prompt[np.arange(2), lengths - 1].repeat(count)[:, None], responses.reshape(6, -1)], 1)
        after = []
        for step in range(limit + 1):

            def attend(query, key, value, pair, step=step):
                pair[:] = (jnp.concatenate([x, new[:, None]], 1) for x, new in zip(pair, (key, value), strict=True))
                mask = np.concatenate([seen, np.ones((6, step + 1), bool)], 1)[:, None, None]
                return jax.nn.dot_product_attention(query[:, None], *pair, mask=mask)[:, 0]

            attends = [functools.partial(attend, pair=pair) for pair in kept]
            positions = (lengths - 1).repeat(count) + step
            after.append(decoder.logits(decoder.decode(tokens[:, step], positions, layers, attends)))
        return jnp.stack(after, 1).reshape(2, count, limit + 1, -1)

    logits = stepwise(params)
    for b, n in np.ndindex(2, count):
        sequence = np.concatenate([prompt[b, : lengths[b]], responses[b, n]])
        np.testing.assert_allclose(logits[b, n], single(sequence)[lengths[b] - 1 :], atol=1e-5)


def test_remat_changes_nothing_but_memory(params):
    tokens = RNG.integers(0, 29, (2, 7)).astype(np.int32)
    fields = tokens, np.broadcast_to(np.arange(7), (2, 7)), np.ones_like(tokens)
    results = {}
    for remat in REMAT_POLICIES:
        model = Model(dataclasses.replace(CONFIG, remat=remat))
        loss = lambda params, model=model: jnp.mean(model.logits(params, *fields) ** 2)  # noqa: E731
        results[remat] = jax.jit(jax.value_and_grad(loss))(params)
    assert set(results) == {"none", "dots", "full"}
    for remat in ("dots", "full"):
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
        jax.tree.map(compare, results[remat], results["none"])


def test_dots_computes_no_product_twice(params):
    """Products that a policy keeps are not computed again, the CPUs' own products included."""
    tokens = np.ones((2, 7), np.int32)

    def products(remat):
        model = Model(dataclasses.replace(CONFIG, remat=remat), "score")
        loss = lambda params: jnp.sum(model.scores(params, tokens, tokens, tokens))  # noqa: E731
        abstract = model.abstract_params()
        return str(jax.make_jaxpr(jax.grad(loss))(abstract)).count(f",{CONFIG.intermediate_size}] = dot_general")

    assert products("none") == products("dots") < products("full")


def test_layers_are_scanned():
    """The program of twelve layers is as long as that of three."""
    tokens = np.zeros((1, 4), np.int32)

    def lines(layers: int) -> int:
        model = Model(dataclasses.replace(CONFIG, num_layers=layers))
        return len(str(jax.make_jaxpr(model.logits)(model.abstract_params(), tokens, *alone(4))).splitlines())

    assert lines(12) == lines(3)


def test_every_parameter_matters(params, logits_of):
    tokens = RNG.integers(0, 29, (1, 9)).astype(np.int32)
    loss = lambda params: jnp.sum(logits_of(params, tokens, *alone(9)) ** 2)  # noqa: E731
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
        norms = np.abs(np.asarray(gradient)).reshape(gradient.shape[0], -1).max(1)
        if "embed" in jax.tree_util.keystr(path):
            norms = norms[np.unique(tokens)]
        assert (norms > 1e-4).all(), path


@pytest.mark.parametrize("head", ["lm", "score"])
def test_tied_heads(head):
    tied, untied = (Model(dataclasses.replace(CONFIG, tie_embeddings=tie), head) for tie in (True, False))
    assert "lm_head" not in tied.abstract_params()
    assert ("lm_head" in untied.abstract_params()) == (head == "lm")
    assert ("score" in tied.abstract_params()) == (head == "score")
    if head == "lm":
        params = random_params(untied)
        embedding = params["embed"]["embedding"]
        same = {**params, "lm_head": {"embedding": embedding}}
        params = {name: tree for name, tree in params.items() if name != "lm_head"}
        fields = np.arange(5, dtype=np.int32)[None], *alone(5)
        np.testing.assert_allclose(untied.logits(same, *fields), tied.logits(params, *fields), atol=1e-5)


def test_compute_dtype(params):
    """The layers are in bfloat16; logits, scores and their log-sum-exp are float32 and never rounded to 8 bits."""
    fields = np.arange(9, dtype=np.int32)[None], *alone(9)
    exact = Model(CONFIG).logits(params, *fields)
    model = Model(dataclasses.replace(CONFIG, dtype="bfloat16"))
    decoder = model.bind(params)
    assert decoder(*fields).dtype == jnp.bfloat16
    logits = model.logits(params, *fields)
    assert logits.dtype == jnp.float32
    assert len(np.unique(np.asarray(logits).view(np.uint32) & 0xFFFF)) > 100  # bits that bfloat16 does not have
    np.testing.assert_allclose(logits, exact, atol=0.25)
    scorer = Model(model.config, "score")
    assert scorer.scores(random_params(scorer), *fields).dtype == jnp.float32


def test_score_is_linear_in_the_final_hidden_state():
    """The head is Linear(hidden, 1) with bias on the final-norm state (`docs/algorithm.md`, section 1)."""
    model = Model(CONFIG, "score")
    params = random_params(model)
    fields = RNG.integers(0, 29, (1, 6)).astype(np.int32), *alone(6)
    hidden = np.asarray(model.bind(params)(*fields), np.float64)
    expected = hidden @ params["score"]["kernel"][:, 0] + params["score"]["bias"][0]
    np.testing.assert_allclose(model.scores(params, *fields), expected, atol=1e-5)
    unscaled = hidden / params["final_norm"]["scale"]
    np.testing.assert_allclose(np.mean(unscaled**2, axis=-1), 1, atol=1e-3)


def test_the_scalar_head_is_float32_where_float32_products_are_rounded():
    """The head's forward and backward products ask for full precision: TPUs and GPUs use fewer bits by default."""
    model = Model(dataclasses.replace(CONFIG, dtype="bfloat16"), "score")
    fields = np.zeros((1, 6), np.int32), *alone(6)
    loss = lambda params: jnp.sum(model.scores(params, *fields))  # noqa: E731
    everything = equations(jax.make_jaxpr(jax.grad(loss))(model.abstract_params()).jaxpr)
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    exact = [eqn for eqn in everything if eqn.params.get("precision") == highest]
    assert len(exact) == 3
    for eqn in exact:
        assert {var.aval.dtype for var in eqn.invars} == {jnp.dtype("float32")}
        assert any(1 in var.aval.shape for var in (*eqn.invars, *eqn.outvars))


def equations(jaxpr):
    """All equations of a jaxpr, those inside scans and checkpoints included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            if inner := getattr(value, "jaxpr", value if hasattr(value, "eqns") else None):
                yield from equations(inner)
