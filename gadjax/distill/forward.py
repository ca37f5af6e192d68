"""What the losses read from a network, for any layout of rows: log-probs of response tokens, scores of sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gadjax.data.packing import Packed
from gadjax.models.logprobs import token_logprobs
from gadjax.models.model import Model, Params


def response_logprobs(
    model: Model,
    params: Params,
    rows: Packed,
    *,
    temperature: float,
    chunk: int,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of the response tokens, and entropies of the distributions they come from: each [R, K], in nats.

    Both are of the temperature-scaled, untruncated distribution. Empty slots (where `rows.mask` is False) hold
    arbitrary finite values.

    Args:
      model: a model with the "lm" head.
      params: its parameters.
      rows: one micro-batch.
      temperature: divides the logits.
      chunk: response positions whose logits exist at once on a device.
      entropy_gradient: whether the entropies have a gradient.
    """
    decoder = model.bind(params)
    hidden = decoder(rows.tokens, rows.positions, rows.segments)
    return token_logprobs(
        hidden,
        decoder.head,
        rows.source,
        rows.target,
        temperature=temperature,
        chunk=chunk,
        entropy_gradient=entropy_gradient,
        head_gradient=model.config.lora is None,
        mesh=model.mesh,
    )


def sequence_scores(model: Model, params: Params, rows: Packed) -> jax.Array:
    """The score D [S] of each sequence: the scalar head at its last token, float32 (`docs/algorithm.md`, section 1).

    Sequences of other micro-batches get 0.
    """
    return _at_last(model.scores(params, rows.tokens, rows.positions, rows.segments), rows)


def token_scores(model: Model, params: Params, rows: Packed) -> jax.Array:
    """The scalar head's value at each response token: [R, K], float32. Empty slots hold arbitrary finite values.

    The last token's value is the score of `sequence_scores`.
    """
    scores = model.scores(params, rows.tokens, rows.positions, rows.segments)
    # The slots of a sequence follow each other, and a slot's source is the column of the token before it. So a token's
    # column is the next slot's source; the last token has none after it.
    before = jnp.take_along_axis(scores, rows.source, axis=1)
    following = jnp.roll(before, -1, axis=1)
    ends = rows.step + 1 == per_token(response_lengths(rows), rows)
    return jnp.where(ends, per_token(_at_last(scores, rows), rows), following)


def pooled_scores(model: Model, params: Params, rows: Packed, pooling: str) -> jax.Array:
    """The score [S] of each sequence by `discriminator.pooling`: the value at its last token, or the mean over all."""
    if pooling == "last":
        return sequence_scores(model, params, rows)
    return pool(token_scores(model, params, rows), rows, pooling)


def pool(values: jax.Array, rows: Packed, pooling: str) -> jax.Array:
    """The scores [S] that the values [R, K] of `token_scores` make."""
    lengths = response_lengths(rows)
    if pooling == "mean":
        return per_sequence(values, rows) / jnp.maximum(lengths, 1)
    return per_sequence(jnp.where(rows.step + 1 == per_token(lengths, rows), values, 0.0), rows)


def _at_last(scores: jax.Array, rows: Packed) -> jax.Array:
    """The values [S] of scores [R, L] at the sequences' last tokens; 0 for sequences of other micro-batches."""
    return jnp.where(rows.last < 0, 0.0, scores.reshape(-1)[rows.last])


def per_token(values: jax.Array, rows: Packed) -> jax.Array:
    """The values [S] of sequences, repeated at each of their response tokens: [R, K], 0 in empty slots."""
    return values.at[rows.owner].get(mode="fill", fill_value=0.0)


def per_sequence(values: jax.Array, rows: Packed) -> jax.Array:
    """The sums [S] over each sequence of its response tokens' values [R, K]."""
    return jnp.zeros(rows.last.shape, values.dtype).at[rows.owner].add(values, mode="drop")


def of_tokens(values: jax.Array, rows: Packed, width: int) -> jax.Array:
    """Values of response tokens in rows, [..., R, K], by sequence and place in the response: [S, width], else 0."""
    shape = (rows.last.shape[-1], width)
    return jnp.zeros(shape, values.dtype).at[rows.owner, rows.step].add(values, mode="drop")


def in_rows(values: jax.Array, rows: Packed) -> jax.Array:
    """The values [S, width] of `of_tokens` at the slots of one micro-batch's rows: [R, K], 0 in empty slots."""
    return values.at[rows.owner, rows.step].get(mode="fill", fill_value=0.0)


def response_lengths(rows: Packed) -> jax.Array:
    """The number [S] of response tokens of each sequence, over all micro-batches."""
    count = rows.last.shape[-1]
    return jnp.bincount(rows.owner.reshape(-1), length=count + 1)[:count]
