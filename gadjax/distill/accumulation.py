"""Gradients that are added up over micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gadjax.models.model import Params


def accumulate(
    loss: Callable[..., tuple[jax.Array, Any]], params: Params, micro: tuple
) -> tuple[jax.Array, Params, Any]:
    """Sums a loss and its gradient over micro-batches, one after another.

    Args:
      loss: takes the parameters and a micro-batch; returns the micro-batch's share of the whole loss, a scalar, and
        auxiliary values.
      params: what to differentiate.
      micro: trees with a leading axis of M micro-batches.

    Returns:
      The loss, its gradient, and the auxiliary values stacked [M, ...].
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def step(carry, micro):
        (value, auxiliary), gradients = value_and_grad(params, *micro)
        return jax.tree.map(jnp.add, carry, (value, gradients)), auxiliary

    if jax.tree.leaves(micro)[0].shape[0] == 1:  # saves the scan's buffer of gradients
        (value, auxiliary), gradients = value_and_grad(params, *jax.tree.map(lambda leaf: leaf[0], micro))
        return value, gradients, jax.tree.map(lambda leaf: leaf[None], auxiliary)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (value, gradients), auxiliary = jax.lax.scan(step, zero, micro)
    return value, gradients, auxiliary
