"""Log-probabilities of given tokens without ever holding logits of shape [batch, time, vocabulary]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def token_logprobs(
    to_logits: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 128,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of `targets`, and entropies, of the temperature-scaled, untruncated distribution.

    The vocabulary axis exists for `chunk` positions of each row at a time, in the backward pass too (each chunk's
    logits are computed again there).

    Args:
      to_logits: hidden states [..., H] to float32 logits [..., V].
      hidden: [B, K, H], the states that predict the targets.
      targets: [B, K] token ids.
      temperature: divides the logits.
      chunk: positions of each row whose logits live at once.
      entropy_gradient: whether the entropies carry a gradient; without, their backward pass costs nothing.

    Returns:
      Log-probs and entropies in nats, each [B, K], float32.
    """
    rows, length, _ = hidden.shape
    chunk = min(chunk, length)
    padding = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    chunks = (length + padding) // chunk

    @jax.checkpoint
    def one_chunk(states: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = to_logits(states) / temperature
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        mean_logit = jnp.sum(jnp.exp(logits - normalizer[..., None]) * logits, axis=-1)
        entropy = normalizer - mean_logit
        return chosen - normalizer, entropy if entropy_gradient else jax.lax.stop_gradient(entropy)

    def step(_, start):
        states = jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1)
        return None, one_chunk(states, jax.lax.dynamic_slice_in_dim(targets, start, chunk, axis=1))

    _, (logprobs, entropy) = jax.lax.scan(step, None, jnp.arange(chunks) * chunk)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, chunks * chunk)[:, :length]  # noqa: E731
    return join(logprobs), join(entropy)
