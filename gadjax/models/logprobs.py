"""Log-probabilities of given tokens without ever holding logits of shape [batch, time, vocabulary].

Each device goes through its own positions in chunks. The backward pass does the same and computes a chunk's logits
again. The head is gathered once before the first chunk, and its gradient is summed over devices once after the last;
the compiler, if free to choose, does both at every chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gadjax.kernels import choose
from gadjax.parallel.mesh import ACTIVATION_RULES, TRAINING_RULES, Rules, dividing_axes

LOGITS = "logits"  # the named scope of arrays with the logits' size: a weight may be as large, and is not meant
_TILE = 128  # rows that accelerators multiply at once
_HEAD_DIM = (((1,), (1,)), ((), ()))  # [C, H] x [V, H] -> [C, V]


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    source: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    entropy_gradient: bool = False,
    head_gradient: bool = True,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of `targets` and entropies, both of the temperature-scaled, untruncated distribution.

    Args:
      hidden: [R, L, H] hidden states of rows, in the compute dtype.
      head: [V, H], the stored kernel of the language-model head (`Decoder.head`).
      source: [R, K] the columns whose states predict the targets. States are picked chunk by chunk, so that a large K
        takes no memory.
      targets: [R, K] token ids.
      temperature: divides the logits.
      chunk: the largest number of positions whose logits a device holds at once.
      entropy_gradient: whether the entropies have a gradient.
      head_gradient: whether the head has a gradient; a frozen head saves its float32 buffer.
      mesh: devices that the rows are split over; None for one device.

    Returns:
      Log-probabilities and entropies in nats, each [R, K], float32.
    """
    settings = (temperature, chunk, entropy_gradient, head_gradient)
    plan = _Plan.of(hidden.shape, head.shape, mesh, settings)
    return _logprobs(plan, *map(jnp.asarray, (hidden, head, source, targets)))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static arguments, and the mesh axes that follow from them. Hashable."""

    temperature: float
    chunk: int
    entropy_gradient: bool
    head_gradient: bool
    mesh: Mesh | None
    gathers: bool  # whether the targets' logits are looked up by index
    rows: tuple[str, ...] = ()  # mesh axes that split the rows,
    vocab: tuple[str, ...] = ()  # the vocabulary,
    hidden: tuple[str, ...] = ()  # and the hidden axis of the stored head

    @classmethod
    def of(
        cls, states: tuple[int, ...], head: tuple[int, ...], mesh: Mesh | None, settings: tuple[float, int, bool, bool]
    ) -> _Plan:
        plan = cls(*settings, mesh, choose.gathers_targets(mesh))
        if mesh is None:
            return plan

        def axes(rules: Rules, name: str, size: int) -> tuple[str, ...]:
            return tuple(axis for axis in dividing_axes(mesh, rules, name, size) if mesh.shape[axis] > 1)

        return dataclasses.replace(
            plan,
            rows=axes(ACTIVATION_RULES, "batch", states[0]),
            vocab=axes(ACTIVATION_RULES, "vocab", head[0]),
            hidden=axes(TRAINING_RULES, "embed", head[1]),
        )

    def spread(self, function: Callable[..., Any], inputs: str, outputs: str) -> Callable[..., Any]:
        """`function` on each device's part of its arguments and results.

        Letters name how each is split: "r" by rows, "h" as the gathered head, "g" as the stored head.
        """
        if self.mesh is None:
            return function
        specs = {"r": P(self.rows), "h": P(self.vocab), "g": P(self.vocab, self.hidden)}
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(specs[part] for part in inputs),
            out_specs=tuple(specs[part] for part in outputs),
            check_vma=False,
        )

    def logits(self, hidden: jax.Array, head: jax.Array) -> jax.Array:
        """Logits [C, V'] of a chunk, over this device's part of the vocabulary; at least float32."""
        wide = jnp.promote_types(jnp.float32, hidden.dtype)
        return jax.lax.dot_general(hidden, head, _HEAD_DIM, preferred_element_type=wide) / self.temperature

    def is_target(self, targets: jax.Array, size: int) -> jax.Array:
        """Bool [C, V']: True at each target's place in this device's part of the vocabulary."""
        first = size * jax.lax.axis_index(self.vocab) if self.vocab else 0
        return jnp.arange(size) == (targets - first)[:, None]

    def chosen(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The targets' logits [C]; see `choose.gathers_targets`."""
        if self.gathers and not self.vocab:
            return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return self.over_vocab(jnp.sum(jnp.where(self.is_target(targets, logits.shape[-1]), logits, 0), axis=-1))

    def over_vocab(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, self.vocab) if self.vocab else x

    def chunks(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """[R, K] arrays as chunks of equal size, [chunks, C]; the last chunk is filled up with zeros."""
        count = math.prod(arrays[0].shape)
        size = -(-count // -(-count // self.chunk))
        if size > _TILE:
            size = min(self.chunk, -(-size // _TILE) * _TILE)
        return tuple(jnp.pad(x.reshape(-1), (0, -count % size)).reshape(-1, size) for x in arrays)


def _places(source: jax.Array, length: int) -> jax.Array:
    """The columns [R, K] of rows as indices into all rows laid end to end."""
    return source + length * jnp.arange(source.shape[0])[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(plan: _Plan, hidden, head, source, targets):
    return _forward(plan, hidden, head, source, targets)[0]


def _forward(plan: _Plan, hidden, head, source, targets):
    def local(hidden, head, source, targets):
        states = hidden.reshape(-1, hidden.shape[-1])

        @jax.named_scope(LOGITS)
        def step(_, chunk):
            places, ids = chunk
            logits = plan.logits(states[places], head)
            # A softmax whose sums go over all parts of the vocabulary.
            highest = jnp.max(logits, axis=-1)
            if plan.vocab:
                highest = jax.lax.pmax(highest, plan.vocab)
            shares = jnp.exp(logits - highest[:, None])
            total = plan.over_vocab(jnp.sum(shares, axis=-1))
            normalizer = highest + jnp.log(total)
            # log p = logit - normalizer; the entropy is the normalizer less the mean logit.
            mean_logit = plan.over_vocab(jnp.sum(shares * logits, axis=-1)) / total
            chosen = plan.chosen(logits, ids)
            return None, (chosen - normalizer, normalizer - mean_logit, normalizer)

        _, chunked = jax.lax.scan(step, None, plan.chunks(_places(source, hidden.shape[1]), targets))
        return tuple(x.reshape(-1)[: targets.size].reshape(targets.shape) for x in chunked)

    local = plan.spread(local, "rhrr", "rrr")
    logprobs, entropy, normalizer = local(hidden, head.astype(hidden.dtype), source, targets)
    return (logprobs, entropy), (hidden, head, source, targets, normalizer, entropy)


def _backward(plan: _Plan, residuals, cotangents):
    """d logprob / d logits = onehot - p;  d entropy / d logits = -p (logits - mean logit)."""
    hidden, head, source, targets, normalizer, entropy = residuals

    def local(hidden, head, source, targets, normalizer, entropy, of_logprob, of_entropy):
        rows = hidden.reshape(-1, hidden.shape[-1])

        def step(gradients, chunk):
            of_rows, of_head = gradients
            places, ids, normalizer, entropy, of_logprob, of_entropy = chunk
            states = rows[places]
            with jax.named_scope(LOGITS):
                logits = plan.logits(states, head)
                probability = jnp.exp(logits - normalizer[:, None])
                slope = of_logprob[:, None] * (plan.is_target(ids, head.shape[0]) - probability)
                if plan.entropy_gradient:
                    mean_logit = (normalizer - entropy)[:, None]
                    slope -= of_entropy[:, None] * probability * (logits - mean_logit)
                slope = (slope / plan.temperature).astype(states.dtype)
            # Gradients of the states, added in where the chunk picked them, and of the head.
            of_states = plan.over_vocab(jnp.einsum("cv,vh->ch", slope, head, preferred_element_type=wide))
            if plan.head_gradient:
                of_head += jnp.einsum("cv,ch->vh", slope, states, preferred_element_type=wide)
            return (of_rows.at[places].add(of_states.astype(states.dtype)), of_head), None

        wide = jnp.promote_types(jnp.float32, head.dtype)
        chunks = plan.chunks(_places(source, hidden.shape[1]), targets, normalizer, entropy, of_logprob, of_entropy)
        zeros = jnp.zeros_like(rows), jnp.zeros(head.shape if plan.head_gradient else (), wide)
        (of_rows, of_head), _ = jax.lax.scan(step, zeros, chunks)
        return of_rows.reshape(hidden.shape), _sum_over_rows(plan, of_head) if plan.head_gradient else None

    of_hidden, of_head = plan.spread(local, "rhrrrrrr", "rg")(
        hidden, head.astype(hidden.dtype), source, targets, normalizer, entropy, *cotangents
    )
    return of_hidden, of_head.astype(head.dtype) if plan.head_gradient else None, None, None


def _sum_over_rows(plan: _Plan, gradient: jax.Array) -> jax.Array:
    """The head's gradient, summed over the devices' rows; each device keeps the part that it stores of the head."""
    if plan.mesh is None:
        return gradient
    for axis in plan.hidden:  # cut first, so that little is left to sum
        if axis in plan.rows:
            gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=1, tiled=True)
        else:  # these devices have the same rows, and so the same sum
            size = gradient.shape[1] // plan.mesh.shape[axis]
            gradient = jax.lax.dynamic_slice_in_dim(gradient, size * jax.lax.axis_index(axis), size, axis=1)
    rest = tuple(axis for axis in plan.rows if axis not in plan.hidden)
    return jax.lax.psum(gradient, rest) if rest else gradient


_logprobs.defvjp(_forward, _backward)
