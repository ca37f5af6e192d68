"""What the losses read from a network: log-probs of response tokens and scores of sequences, for any layout of rows."""

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
    """Log-probs of the response tokens and entropies of the distributions that they come from, nats: each [R, K].

    Both are of the temperature-scaled, untruncated distribution. Empty slots (`rows.mask`) hold finite rubbish.
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
    """D of each sequence, [S]: the scalar head at the sequence's last token, float32 (`docs/algorithm.md`, section 1).

    0 for those that are in another micro-batch.
    """
    scores = model.scores(params, rows.tokens, rows.positions, rows.segments)
    return jnp.where(rows.last < 0, 0.0, scores.reshape(-1)[rows.last])


def per_token(values: jax.Array, rows: Packed) -> jax.Array:
    """Each sequence's value [S] at each of its response tokens, 0 in empty slots: [R, K]."""
    return values.at[rows.owner].get(mode="fill", fill_value=0.0)


def per_sequence(values: jax.Array, rows: Packed) -> jax.Array:
    """Each sequence's sum of its response tokens' values [R, K]: [S]."""
    return jnp.zeros(rows.last.shape, values.dtype).at[rows.owner].add(values, mode="drop")


def response_lengths(rows: Packed) -> jax.Array:
    """Response tokens of each sequence, over all micro-batches: [S]."""
    count = rows.last.shape[-1]
    return jnp.bincount(rows.owner.reshape(-1), length=count + 1)[:count]
