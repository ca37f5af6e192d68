"""Attention over keys that come in parts equals attention over all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gadjax.kernels.online_softmax import LOWEST, Partial, fold, merge, nothing, of_block, update

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)
DIM = 4


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("parts", [1, 3])
def test_fold_joins_parts_as_merge_does(parts):
    cuts = [Partial(normal(parts, 2, DIM)[i], normal(2), np.exp(normal(2))) for i in range(parts)]
    together = Partial(*(np.stack(x) for x in zip(*cuts, strict=True)))
    np.testing.assert_allclose(merge(fold(together)), merge(*cuts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 5, 12])
def test_blocks_one_after_another_are_the_softmax(block):
    """By `update` and by `merge`, with keys that are not seen, and a whole block of them at the end."""
    logits, values = 9 * normal(3, 12), normal(12, DIM)
    logits[:, [2, 7]] = LOWEST
    wanted = jax.nn.softmax(logits) @ values
    logits, values = np.pad(logits, ((0, 0), (0, 5)), constant_values=LOWEST), np.pad(values, ((0, 5), (0, 0)))
    cuts = [slice(start, start + block) for start in range(0, 17, block)]
    running = nothing((3, DIM))
    for cut in cuts:
        running = update(running, logits[:, cut], lambda weights, cut=cut: weights @ values[cut])
    parts = [of_block(jnp.asarray(logits[:, cut]), lambda weights, cut=cut: weights @ values[cut]) for cut in cuts]
    for found in (merge(running), merge(*parts)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
