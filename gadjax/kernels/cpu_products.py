"""Products with weights, as XLA computes them fast on CPUs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def smaller_first_product(
    x: jax.Array, kernel: jax.Array, contracted: int, precision: jax.lax.Precision | None = None
) -> jax.Array:
    """`jnp.tensordot` over the last axes of x and the first of the kernel, whose gradient is fast on CPUs.

    XLA's CPU backend transposes the left factor of a product over tokens element by element, and computes what is fused
    into it anew, such as the exponentials of a feed-forward layer; so the factor with fewer channels goes left here.

    Args:
      x: [..., *inputs].
      kernel: [*inputs, *outputs].
      contracted: the number of inputs' axes.
    """
    return _product(x, kernel, contracted, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, contracted, precision):
    return jnp.tensordot(x, kernel, contracted, precision=precision)


def _forward(x, kernel, contracted, precision):
    # The product itself, not the function around it: what a remat policy keeps is told by the operation's name.
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
