"""The terms of the policy loss, which `update_policy` measures beside their sum, in float64 and to its rounding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.distill.dense_oracle import dense_policy_loss
from tests.distill.policy import update_against
from tests.distill.test_updates import POLICY, RTOL, assert_trees_close, policy_update


@pytest.mark.parametrize("name", ["paper", "off_policy", "constant", "every_term", "every_term_off_policy"])
def test_the_terms_of_the_policy_loss_are_measured_beside_their_sum(bigrams, keep_gradient, name):
    """Each is what the loss by formula loses without its coefficient; terms that the method has not are left out."""
    method = bigrams.method(generator_optimizer=keep_gradient, **POLICY[name])
    terms = {"kl_loss": "kl_coefficient", "entropy_loss": "entropy_coefficient", "sft_loss": "sft_coefficient"}
    present = {term: field for term, field in terms.items() if getattr(method, field)}

    def loss_without(*fields):
        changed = dataclasses.replace(method, **dict.fromkeys(fields, 0.0))
        return float(dense_policy_loss(bigrams.params["generator"], bigrams, changed))

    expected = {term: loss_without() - loss_without(field) for term, field in present.items()}
    expected["policy_loss"] = loss_without(*present.values())
    _, metrics = policy_update(bigrams, method)
    logged = {name.removeprefix("generator/"): value for name, value in metrics.items() if name.endswith("_loss")}
    assert_trees_close(logged, expected, rtol=1e-9)
    np.testing.assert_allclose(sum(logged.values()), metrics["generator/loss"], rtol=RTOL)
    assert min(map(abs, expected.values())) > 1e-4


def test_demonstrations_are_a_term_of_the_policy_loss(bigrams, keep_gradient):
    """With the teacher's answers as members, whose own term is the whole loss where samples have no advantage."""
    method = bigrams.method(generator_optimizer=keep_gradient, kl_coefficient=0.0, demonstrations=0.5)
    rows, sampled = bigrams.policy_rows(method)
    state = bigrams.state(method)
    update = functools.partial(
        jax.jit(functools.partial(update_against, method)), state.generator, state.reference, rows, sampled
    )
    given = bigrams.teacher_rows(method), jnp.full(len(bigrams.advantages), 2.0)
    _, both = update(bigrams.advantages, *given)
    _, alone = update(0 * bigrams.advantages, *given)
    assert {name for name in both if name.endswith("_loss")} == {
        "generator/policy_loss",
        "generator/demonstration_loss",
    }
    np.testing.assert_allclose(alone["generator/loss"], both["generator/demonstration_loss"], rtol=RTOL)
    np.testing.assert_allclose(
        both["generator/loss"], both["generator/policy_loss"] + both["generator/demonstration_loss"], rtol=RTOL
    )
    assert both["generator/demonstration_loss"] > 1e-2
