"""Draws one token for each row of logits, exactly, with one pass of exponentials over the vocabulary."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gadjax.models.logprobs import LOGITS
from gadjax.parallel.mesh import ACTIVATION_RULES, BATCH, dividing_axes

_BLOCK = 256  # tokens; a draw first finds a block, then a token in it
_HALF = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      max_response_length: T, the most tokens of a response, EOS included.
      eos_ids: a response ends with the first of these that it draws.
      pad_id: fills a row after the response's end.
      temperature: divides the logits; 0 means the likeliest token.
      top_p: draws from the smallest set of tokens whose probability reaches this; 1 means all tokens.
      top_k: draws from the k likeliest tokens; 0 means all tokens.
    """

    max_response_length: int
    eos_ids: tuple[int, ...]
    pad_id: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@jax.named_scope(LOGITS)
def sample_token(
    logits: jax.Array, keys: jax.Array, sampling: Sampling, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row: the first whose cumulative probability exceeds a uniform number of 48 bits.

    (Gumbel noise for every token would take longer than everything else that is done to the logits.) The number is the
    sum of two float32 parts, so that rare tokens are drawn as often as they should be: the first part finds a block of
    tokens, and its remainder plus the second part finds the token in the block.

    Args:
      logits: [R, V] float32.
      keys: [R] typed PRNG keys; unused at temperature 0.
      sampling: temperature, top_k and top_p.
      mesh: splits rows over its batch axes and the vocabulary over its tensor axis. Each device looks at its own part,
        and only sums are exchanged.

    Returns:
      Tokens [R] int32, and their log-probs [R] (temperature-scaled, untruncated).
    """
    scaled = logits / sampling.temperature if sampling.temperature else logits
    truncated = sampling.temperature and (sampling.top_k or sampling.top_p < 1)
    kept = truncate(scaled, sampling.top_k, sampling.top_p) if truncated else None
    high, low = uniforms(keys) if sampling.temperature else (None, None)
    if mesh is None or mesh.size == 1:
        return _draw(scaled, kept, high, low, ())

    axes = dividing_axes(mesh, ACTIVATION_RULES, "vocab", logits.shape[-1])
    split = P(BATCH, axes or None)

    def local(scaled, kept, high, low):
        return _draw(scaled, kept, high, low, axes)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(split, split, P(BATCH), P(BATCH)), out_specs=P(BATCH), check_vma=False
    )(scaled, kept, high, low)


def uniforms(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two float32 parts [R] of a uniform number in [0, 1), each exact. Their sum has 48 bits."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys) >> 8
    high, low = (bits.astype(jnp.float32) * _HALF).T
    return high, low * _HALF


def truncate(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Sets logits to -inf outside the top k, and then outside the nucleus of top_p (Holtzman et al., 2020)."""
    if top_k:
        kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits >= kth, logits, -jnp.inf)
    if top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        inside = (before < top_p) | (before == 0)  # the likeliest token at least
        smallest = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    return logits


def _draw(scaled, kept, high, low, axes):
    """`sample_token` on one of the devices that share the vocabulary.

    Args:
      scaled: [R, V / devices] logits over the temperature.
      kept: the truncated logits, or None to draw from all tokens.
      high, low: from `uniforms`, or None for the likeliest token.
      axes: mesh axes that the vocabulary is split over.
    """
    gather = (lambda x: jax.lax.all_gather(x, axes)) if axes else (lambda x: x[None])  # [devices, ...]
    add = (lambda x: jax.lax.psum(x, axes)) if axes else (lambda x: x)
    own = jax.lax.axis_index(axes) if axes else 0
    # The normaliser of the log-probs: exponentials are summed in blocks, relative to the largest logit.
    top = jnp.max(gather(jnp.max(scaled, axis=-1)), axis=0)
    sums = _block_sums(scaled, top)  # [R, blocks]
    total = add(_sum(sums))
    if high is None:
        token = jnp.argmax(scaled, axis=-1)
        holds = gather(jnp.max(scaled, axis=-1)) == top  # [devices, R]
        owner = jnp.argmax(holds, axis=0)
    else:
        # The uniform number, times the whole mass, falls into one device's part, one block of it, and one token there.
        sums = sums if kept is None else _block_sums(kept, top)
        masses = gather(_sum(sums)).T  # [R, devices]
        whole = _sum(masses)
        owner, rest = _find(masses, high * whole, 0.0)
        block, rest = _find(sums, rest, 0.0)
        inside = jnp.exp(_block(scaled if kept is None else kept, block) - top[:, None])  # [R, _BLOCK]
        place, _ = _find(inside, rest, low * whole)
        token = block * _BLOCK + place
    # Every device has found a token in its own part. The owner's is sent to all.
    mine = owner == own
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
    chosen = add(jnp.where(mine, chosen, 0.0))
    token = add(jnp.where(mine, token + own * scaled.shape[-1], 0))
    return token.astype(jnp.int32), chosen - top - jnp.log(total)


def _block_sums(logits: jax.Array, top: jax.Array) -> jax.Array:
    """[R, blocks] sums of exp(logit - top)."""
    weights = jnp.exp(logits - top[:, None])
    weights = jnp.pad(weights, ((0, 0), (0, -weights.shape[-1] % _BLOCK)))
    return jnp.sum(weights.reshape(weights.shape[0], -1, _BLOCK), axis=-1)


def _sum(masses: jax.Array) -> jax.Array:
    """[R] the end of `_find`'s cumulative sum. A plain sum would pass over the vocabulary once more."""
    return jnp.cumsum(masses, axis=-1)[:, -1]


def _block(logits: jax.Array, block: jax.Array) -> jax.Array:
    """[R, _BLOCK] logits of one block a row, -inf beyond the vocabulary."""
    places = block[:, None] * _BLOCK + jnp.arange(_BLOCK)
    found = jnp.take_along_axis(logits, jnp.minimum(places, logits.shape[-1] - 1), axis=-1)
    return jnp.where(places < logits.shape[-1], found, -jnp.inf)


def _find(masses: jax.Array, target: jax.Array, more: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Where a cumulative sum first exceeds target + more.

    Args:
      masses: [R, n] with at least one above 0 in a row. One of these is found, whatever the rounding.
      target: [R].
      more: [R], too small to be added to anything but the remainder.

    Returns:
      The index [R], and the remainder of `target` from there [R].
    """
    ends = jnp.cumsum(masses, axis=-1)
    starts = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
    last = masses.shape[-1] - 1 - jnp.argmax(masses[:, ::-1] > 0, axis=-1)
    found = jnp.sum((ends - target[:, None]) <= jnp.asarray(more)[..., None], axis=-1)
    found = jnp.minimum(found, last)
    begin = jnp.take_along_axis(starts, found[:, None], axis=-1)[:, 0]
    return found, target - begin
