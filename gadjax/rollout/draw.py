"""Draws one token a row from logits, exactly and with one pass of exponentials over the vocabulary."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gadjax.models.logprobs import LOGITS
from gadjax.parallel.mesh import ACTIVATION_RULES, BATCH, dividing_axes

_BLOCK = 256  # tokens whose probabilities are summed before one of them is looked for
_HALF = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      max_response_length: T, tokens at most, EOS included.
      eos_ids: a response ends at any of these, which is then its last token.
      pad_id: fills the rows after their end.
      temperature: divides the logits; 0 is greedy.
      top_p: keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
      top_k: keeps the k likeliest tokens; 0 keeps all.
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

    Noise for every token (the Gumbel maximum) would take longer than all else that is done to the logits. The number
    has two parts, so that rare tokens are drawn as often as they should be: the first finds a block of tokens, and what
    is left of it, with the second, the token in it.

    Args:
      logits: [R, V] float32.
      keys: [R] typed PRNG keys; unused at temperature 0.
      sampling: how to draw.
      mesh: that rows are split over by the batch axes and the vocabulary by the tensor axis; each device looks at its
        own part, and sums are exchanged.

    Returns:
      Tokens and their log-probs (temperature-scaled, untruncated), each [R].
    """
    scaled = logits / sampling.temperature if sampling.temperature else logits
    truncated = sampling.temperature and (sampling.top_k or sampling.top_p < 1)
    kept = truncate(scaled, sampling.top_k, sampling.top_p) if truncated else scaled
    greedy = not sampling.temperature
    high, low = (None, None) if greedy else uniforms(keys)
    if mesh is None or mesh.size == 1:
        return _draw(scaled, kept if truncated else None, high, low, ())

    axes = dividing_axes(mesh, ACTIVATION_RULES, "vocab", logits.shape[-1])
    split = P(BATCH, axes or None)

    def local(scaled, kept, high, low):
        return _draw(scaled, kept, high, low, axes)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(split, split, P(BATCH), P(BATCH)), out_specs=P(BATCH), check_vma=False
    )(scaled, kept if truncated else None, high, low)


def uniforms(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two parts of a uniform number in [0, 1), each [R] float32 and exact: their sum has 48 bits."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys) >> 8
    high, low = (bits.astype(jnp.float32) * _HALF).T
    return high, low * _HALF


def truncate(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """-inf outside the top k tokens and then outside the nucleus of probability top_p (Holtzman et al., 2020)."""
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
    """`sample_token` on one of the devices that share the vocabulary along these mesh axes.

    Args:
      scaled: [R, V / devices].
      kept: the truncated ones, None for all.
      high, low: `uniforms`, None for the likeliest token.
    """
    everyone = (lambda x: jax.lax.all_gather(x, axes)) if axes else (lambda x: x[None])
    add = (lambda x: jax.lax.psum(x, axes)) if axes else (lambda x: x)
    own = jax.lax.axis_index(axes) if axes else 0
    top = jnp.max(everyone(jnp.max(scaled, axis=-1)), axis=0)
    sums = _block_sums(scaled, top)  # [R, blocks]
    total = add(_sum(sums))
    if high is None:
        token = jnp.argmax(scaled, axis=-1)
        holds = everyone(jnp.max(scaled, axis=-1)) == top  # [devices, R]
        owner = jnp.argmax(holds, axis=0)
    else:
        sums = sums if kept is None else _block_sums(kept, top)
        masses = everyone(_sum(sums)).T  # [R, devices]
        whole = _sum(masses)
        owner, rest = _find(masses, high * whole, 0.0)
        block, rest = _find(sums, rest, 0.0)
        inside = jnp.exp(_block(scaled if kept is None else kept, block) - top[:, None])  # [R, _BLOCK]
        place, _ = _find(inside, rest, low * whole)
        token = block * _BLOCK + place
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
    """[R], the end of the cumulative sum that `_find` makes. A plain sum would pass over the vocabulary once more."""
    return jnp.cumsum(masses, axis=-1)[:, -1]


def _block(logits: jax.Array, block: jax.Array) -> jax.Array:
    """[R, _BLOCK] logits of one block a row, -inf beyond the vocabulary."""
    places = block[:, None] * _BLOCK + jnp.arange(_BLOCK)
    found = jnp.take_along_axis(logits, jnp.minimum(places, logits.shape[-1] - 1), axis=-1)
    return jnp.where(places < logits.shape[-1], found, -jnp.inf)


def _find(masses: jax.Array, target: jax.Array, more: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Where a cumulative sum first exceeds target + more, [R], and what of the target is left there.

    Args:
      masses: [R, n], of which some are above 0: rounding never leads to one that is not.
      target: [R].
      more: [R], too small to be added to anything but what is left.
    """
    ends = jnp.cumsum(masses, axis=-1)
    starts = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
    last = masses.shape[-1] - 1 - jnp.argmax(masses[:, ::-1] > 0, axis=-1)
    found = jnp.sum((ends - target[:, None]) <= jnp.asarray(more)[..., None], axis=-1)
    found = jnp.minimum(found, last)
    begin = jnp.take_along_axis(starts, found[:, None], axis=-1)[:, 0]
    return found, target - begin
