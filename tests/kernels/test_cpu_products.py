"""The CPUs' product with weights equals `jnp.tensordot`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.kernels.cpu_products import smaller_first_product

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("lead", [(6,), (2, 3)])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [((4,), (7,)), ((7,), (4,)), ((5,), (5,)), ((4,), (3, 2)), ((3, 2), (4,)), ((4, 3), (2, 5))]
)
def test_results_and_gradients_are_those_of_tensordot(lead, inputs, outputs):
    """Results and gradients agree for any number of axes, whichever side has fewer channels."""
    x, kernel, weights = (
        jnp.asarray(RNG.normal(size=shape)) for shape in (lead + inputs, inputs + outputs, lead + outputs)
    )
    contracted = len(inputs)

    def with_gradients(product):
        loss = lambda x, kernel: jnp.sum(product(x, kernel, contracted) * weights)  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)

    found, wanted = with_gradients(smaller_first_product), with_gradients(jnp.tensordot)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)
