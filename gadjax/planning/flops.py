"""Counts the floating-point operations of a traced function from its jaxpr, loops with their trip counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend import core

from gadjax.kernels.triton_decode import DECODE_ATTENTION

# Matrix products of a causal attention kernel, which is one opaque call, by a part of its name.
_PRODUCTS = {"fwd": 2, "forward": 2, "dkv": 4, "dq": 3, "bwd": 5, "backward": 5}
_FUSED_BACKWARD = 5


def count_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr, loop_trips: Mapping[str, int]) -> int:
    """Operations of the matrix products on all devices; a multiplication and an addition count as two.

    Element-wise operations are left out: they are below a hundredth of a decoder's work, and are bound by memory.

    Args:
      jaxpr: of a traced program, `jax.jit(f).trace(...).jaxpr`.
      loop_trips: how often the body of a data-dependent loop runs each time that the loop is entered, by the
        `jax.named_scope` that the loop was made in. Other loops count with their bound, the largest number that their
        condition compares the counter with.

    Raises:
      ValueError: a loop has neither a name that is known nor a bound.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation, loop_trips) for equation in jaxpr.eqns)


def _of_equation(equation: Any, loop_trips: Mapping[str, int]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (lhs, _), _ = params["dimension_numbers"]
        contracted = math.prod(equation.invars[0].aval.shape[axis] for axis in lhs)
        return 2 * equation.outvars[0].aval.size * contracted
    if name == "ragged_dot" or "conv_general" in name:
        raise NotImplementedError(f"counting of {name}")
    if name == "pallas_call" or "dot_product_attention" in name:
        return _of_kernel(equation)
    if name == "scan":
        return params["length"] * count_flops(params["jaxpr"], loop_trips)
    if name == "while":
        inner = count_flops(params["body_jaxpr"], loop_trips)
        return inner and inner * _trips(equation, loop_trips)
    if name == "cond":
        return max(count_flops(branch, loop_trips) for branch in params["branches"])
    inner = sum(count_flops(sub, loop_trips) for sub in _inner(params))
    if name == "shard_map":  # its jaxpr is of one device
        return inner * params["mesh"].size
    return inner


def _trips(loop: Any, loop_trips: Mapping[str, int]) -> int:
    name = str(loop.source_info.name_stack).rpartition("/")[2]
    if name in loop_trips:
        return loop_trips[name]
    comparisons = (equation for equation in loop.params["cond_jaxpr"].eqns if equation.primitive.name == "lt")
    bounds = [int(var.val) for equation in comparisons for var in equation.invars[1:] if isinstance(var, core.Literal)]
    if not bounds:
        raise ValueError(f"how often does the loop {name or 'without a name'} run? {sorted(loop_trips)} are known")
    return max(bounds)


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.Jaxpr | core.ClosedJaxpr):
                yield one


def _of_kernel(equation: Any) -> int:
    """Operations of an attention kernel, which computes half of the square of logits.

    Splash attention's queries are [..., heads, T, D], cuDNN's [B, T, heads, D].
    """
    pallas = equation.primitive.name == "pallas_call"
    name = equation.params["name"] if pallas else equation.primitive.name
    if name == DECODE_ATTENTION:  # over every position of the cache
        query, key, _ = (var.aval for var in equation.invars if var.aval.ndim >= 4)
        return 4 * query.size * key.shape[0] * key.shape[-1]
    products = next((count for part, count in _PRODUCTS.items() if part in name), None)
    if products is None:
        raise NotImplementedError(f"the operations of the kernel {name} are not known")
    query = next(var.aval for var in equation.invars if var.aval.ndim >= 3 and var.aval.dtype.kind != "i")
    if "dkv" in name and any(var.aval.ndim > query.ndim for var in equation.outvars):
        products = _FUSED_BACKWARD  # it computes the queries' gradient too, in parts along an axis of their own
    length = query.shape[-2] if pallas else query.shape[1]
    return products * query.size * length
