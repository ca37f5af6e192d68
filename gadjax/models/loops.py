"""A loop whose end depends on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def repeat(count: jax.Array, most: int, step: Callable[[jax.Array, Any], Any], state: Any) -> Any:
    """`step(number, state)` for the numbers from 0 to `count`, which is never more than `most`.

    The constant is a bound that a reader of the program sees, who counts what is done in it (`gadjax.planning`).
    """
    unfinished = lambda carry: (carry[0] < count) & (carry[0] < most)  # noqa: E731
    body = lambda carry: (carry[0] + 1, step(*carry))  # noqa: E731
    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]
