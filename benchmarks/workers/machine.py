"""Measures this machine's rates in float32: matrix products in each layout of the weights, and reading memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workers.protocol import serve

_REPEATS = 3  # of which the best counts: a rate is what the machine can do
_RUN = 2**18  # numbers that are read one after another

# x [rows, in] with a weight stored [in, out], and stored [out, in].
_LAYOUTS = {"in,out": (1, 0), "out,in": (1, 1)}


@functools.partial(jax.jit, static_argnums=2)
def _products(x: jax.Array, weights: list[jax.Array], axes: tuple[int, int]) -> list[jax.Array]:
    contract = ((axes[0],), (axes[1],)), ((), ())
    return [jax.lax.dot_general(x, weight, contract) for weight in weights]


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest call, after one that compiles."""
    seconds = []
    jax.block_until_ready(run())
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@functools.cache
def _weights(inputs: int, outputs: int, count: int, layout: str) -> list[jax.Array]:
    """Distinct matrices, so that they are read from memory rather than from a cache, as a model's are."""
    shape = (inputs, outputs) if layout == "in,out" else (outputs, inputs)
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(count)]


def layouts(rows: int, inputs: int, outputs: int, count: int) -> dict[str, float]:
    """Seconds of [rows, inputs] times `count` matrices [inputs, outputs], per layout in XLA and numpy's BLAS."""
    x = np.random.default_rng(1).standard_normal((rows, inputs), np.float32)
    seconds = {}
    for layout, axes in _LAYOUTS.items():
        weights = _weights(inputs, outputs, count, layout)
        device = jnp.asarray(x)
        seconds[f"XLA {layout}"] = _best(lambda w=weights, a=axes, d=device: _products(d, w, a))
        host = [np.asarray(weight) for weight in weights]  # no copies on a CPU
        turned = host if layout == "in,out" else [weight.T for weight in host]
        seconds[f"numpy {layout}"] = _best(lambda w=turned: [x @ weight for weight in w])
    return seconds


def products(rows: int, kinds: list[tuple[int, int, int]]) -> float:
    """Seconds of a token's products with matrices (inputs, outputs, count), each kind in its fastest layout."""
    return sum(min(layouts(rows, *kind).values()) for kind in kinds)


def peak(size: int) -> float:
    """Operations per second of a product of two square matrices of this size."""
    return 2 * size**3 / min(layouts(size, size, size, 1).values())


def bandwidth(gigabytes: float) -> float:
    """Bytes per second of reading an array that no cache holds, with all threads."""
    x = jnp.ones((int(gigabytes * 1e9) // (4 * _RUN), _RUN), jnp.float32)
    read = jax.jit(lambda x: jnp.sum(x, axis=1))
    return x.nbytes / _best(lambda: read(x))


if __name__ == "__main__":
    serve(layouts=layouts, products=products, peak=peak, bandwidth=bandwidth)
