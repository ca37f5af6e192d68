from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gadjax.distill.state import TrainState, adamw, apply_gradients, create, learning_rate

SETTINGS = dict(b1=0.9, b2=0.99, eps=1e-3, weight_decay=0.1)
LEARNING_RATE, CLIP = 0.05, 0.2


@pytest.fixture
def optimizer():
    return adamw(LEARNING_RATE, clip=CLIP, **SETTINGS)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "scale": jnp.array([1.0, -1.0])}


def like(params: dict[str, jax.Array], seed: int, scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=leaf.shape)).astype(np.float32) for name, leaf in params.items()}


def norm(tree: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in tree.values())))


def as_numpy(state: TrainState) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state))]


def test_updates_are_clipped_adamw_on_every_parameter(optimizer, params):
    """Against AdamW written out; the first gradient is over the clip, the second below it."""
    state = create(params, optimizer)
    expected = {name: np.array(leaf, np.float64) for name, leaf in params.items()}
    first = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    second = {name: np.zeros(leaf.shape) for name, leaf in params.items()}
    for step, scale in ((1, 5.0), (2, 0.01)):
        gradients = like(params, step, scale)
        state, measured = apply_gradients(optimizer, state, gradients)
        np.testing.assert_allclose(measured, norm(gradients), rtol=1e-6, err_msg="the norm is the one before clipping")
        assert (norm(gradients) > CLIP) == (step == 1)
        for name in params:
            g = gradients[name] * min(1.0, CLIP / norm(gradients))
            first[name] = SETTINGS["b1"] * first[name] + (1 - SETTINGS["b1"]) * g
            second[name] = SETTINGS["b2"] * second[name] + (1 - SETTINGS["b2"]) * g**2
            unbiased = first[name] / (1 - SETTINGS["b1"] ** step), second[name] / (1 - SETTINGS["b2"] ** step)
            move = unbiased[0] / (np.sqrt(unbiased[1]) + SETTINGS["eps"])
            expected[name] -= LEARNING_RATE * (move + SETTINGS["weight_decay"] * expected[name])
    for name in params:
        np.testing.assert_allclose(state.params[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rise", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", 0, [(1 + np.cos(np.pi * k / 6)) / 2 for k in range(6)]),
        ("cosine", 3, [1 / 4, 2 / 4, 3 / 4, 1, 3 / 4, 1 / 4]),
    ],
)
def test_learning_rates_rise_and_fall_over_the_updates(schedule, rise, expected):
    rate = learning_rate(LEARNING_RATE, schedule, rise=rise, updates=6)
    rates = [rate(jnp.int32(step)) if callable(rate) else rate for step in range(6)]
    np.testing.assert_allclose(rates, LEARNING_RATE * np.array(expected), rtol=1e-6)


def test_a_rate_that_changes_gives_optax_updates_from_the_same_state(params):
    """Against optax.adamw with the schedule. A constant rate leaves a state of the same structure behind."""
    rate = learning_rate(LEARNING_RATE, "cosine", rise=1, updates=4)
    ours = adamw(rate, clip=CLIP, **SETTINGS)
    theirs = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(rate, **SETTINGS))
    state, constant = create(params, ours), create(params, adamw(LEARNING_RATE, clip=CLIP, **SETTINGS))
    assert jax.tree.structure(state) == jax.tree.structure(constant)
    expected, memory = params, theirs.init(params)
    for step in range(4):
        gradients = like(params, step, 1.0)
        state, _ = apply_gradients(ours, state, gradients)
        updates, memory = theirs.update(gradients, memory, expected)
        expected = optax.apply_updates(expected, updates)
        for name in params:
            np.testing.assert_allclose(state.params[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(optimizer, params, bad):
    """One bad entry of one leaf; good steps before, between and after it."""
    good = like(params, 0, 1.0)
    poisoned = jax.tree.map(np.copy, good)
    poisoned["scale"][1] = bad
    counters = lambda state: tuple(int(c) for c in (state.step, state.skipped, state.skipped_in_row))  # noqa: E731

    state, _ = apply_gradients(optimizer, create(params, optimizer), good)
    before = as_numpy(state)
    state, measured = apply_gradients(optimizer, state, poisoned)
    assert not np.isfinite(measured) and counters(state) == (2, 1, 1)
    state, _ = apply_gradients(optimizer, state, poisoned)
    assert counters(state) == (3, 2, 2)
    for new, old in zip(as_numpy(state), before, strict=True):
        np.testing.assert_array_equal(new, old)

    state, _ = apply_gradients(optimizer, state, good)
    assert counters(state) == (4, 2, 0), "a good step ends the row of skipped ones"
    straight, _ = apply_gradients(optimizer, create(params, optimizer), good)
    straight, _ = apply_gradients(optimizer, straight, good)
    for new, old in zip(as_numpy(state), as_numpy(straight), strict=True):
        np.testing.assert_array_equal(new, old)
