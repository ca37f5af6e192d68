"""Products with weights whose gradients XLA computes fast on CPUs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def smaller_first_product(
    x: jax.Array, kernel: jax.Array, contracted: int, precision: jax.lax.Precision | None = None
) -> jax.Array:
    """`jnp.tensordot` over the last axes of `x` and the first of `kernel`, with a gradient that is fast on CPUs.

    A kernel's gradient is a product over tokens. XLA's CPU backend transposes its left factor element by element, and
    computes again what is fused into it, such as the exponentials of a feed-forward layer. So the factor with fewer
    channels goes left.

    Args:
      x: [..., *inputs].
      kernel: [*inputs, *outputs].
      contracted: the number of axes of the inputs.
    """
    return _product(x, kernel, contracted, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, contracted, precision):
    return jnp.tensordot(x, kernel, contracted, precision=precision)


def _forward(x, kernel, contracted, precision):
    # Not `_product`: a remat policy tells by the name of an operation whether to keep its result.
    return jnp.tensordot(x, kernel, contracted, precision=precision), (x, kernel)


def _backward(contracted, precision, residuals, gradient):
    x, kernel = residuals
    tokens = tuple(range(x.ndim - contracted))
    inputs, outputs = kernel.shape[:contracted], kernel.shape[contracted:]
    over_outputs = tuple(range(len(tokens), gradient.ndim)), tuple(range(contracted, kernel.ndim))
    of_x = jnp.tensordot(gradient, kernel, over_outputs, precision=precision)
    if math.prod(inputs) <= math.prod(outputs):
        return of_x, jnp.tensordot(x, gradient, (tokens, tokens), precision=precision)
    of_kernel = jnp.tensordot(gradient, x, (tokens, tokens), precision=precision)  # [*outputs, *inputs]
    order = (*range(len(outputs), kernel.ndim), *range(len(outputs)))
    return of_x, of_kernel.transpose(order)


_product.defvjp(_forward, _backward)
