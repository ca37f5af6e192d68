"""Sampling: one jitted loop that prefills each prompt once and decodes its N samples until every row has ended."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from gadjax.models.logprobs import LOGITS
from gadjax.models.model import Model, Params


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


@struct.dataclass
class Samples:
    """N responses to each of B prompts."""

    tokens: jax.Array  # [B, N, T] int32, pad_id after the end
    lengths: jax.Array  # [B, N] int32, EOS included
    logprobs: jax.Array  # [B, N, T] float32, nats, of the temperature-scaled, untruncated distribution; 0 after the end
    ended: jax.Array  # [B, N] bool; False where the response was cut at T


def rollout(
    model: Model,
    params: Params,
    prompt: jax.Array,
    prompt_length: jax.Array,
    keys: jax.Array,
    num_samples: int,
    sampling: Sampling,
) -> Samples:
    """Samples `num_samples` responses to each prompt. Pure; jit it with the model, N and sampling static.

    A sample depends on its own key, prompt and number only: not on its place in the batch, nor on padding. Log-probs
    are those the trainer computes on the same tokens (decisions page, 1). At temperature 0 they are of the unscaled
    distribution.

    Args:
      model: with the "lm" head.
      params: its parameters, already in the dtype to decode in.
      prompt: [B, P], right-padded.
      prompt_length: [B].
      keys: [B] typed PRNG keys, one a prompt (`row_keys`).
      num_samples: N.
      sampling: how tokens are drawn.
    """
    decoder = model.bind(params)
    layers = decoder.unstacked_layers()
    batch, limit = prompt.shape[0], sampling.max_response_length
    sample_keys = jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(num_samples)))(keys)
    eos = jnp.array(sampling.eos_ids, jnp.int32)

    def draw(logits, step):
        keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(sample_keys)
        return sample_token(logits, keys, sampling)

    hidden, prompt_cache = decoder.prefill(prompt, prompt_length)
    logits = jnp.broadcast_to(decoder.logits(hidden)[:, None], (batch, num_samples, model.config.vocab_size))
    token, logprob = draw(logits, 0)
    shape = (batch, num_samples, limit, model.config.num_kv_heads, model.config.head_dim)
    empty = jnp.zeros(shape, model.config.dtype)
    state = {
        "step": jnp.int32(1),
        "token": token,
        "ended": jnp.isin(token, eos),
        "lengths": jnp.ones((batch, num_samples), jnp.int32),
        "tokens": jnp.full((batch, num_samples, limit), sampling.pad_id, jnp.int32).at[:, :, 0].set(token),
        "logprobs": jnp.zeros((batch, num_samples, limit), jnp.float32).at[:, :, 0].set(logprob),
        "cache": [(empty, empty)] * model.config.num_layers,
    }

    def unfinished(state):
        return (state["step"] < limit) & ~jnp.all(state["ended"])

    def body(state):
        step, ended = state["step"], state["ended"]
        hidden, cache = decoder.decode(state["token"], step - 1, prompt_length, prompt_cache, state["cache"], layers)
        token, logprob = draw(decoder.logits(hidden), step)
        token = jnp.where(ended, sampling.pad_id, token)
        logprob = jnp.where(ended, 0.0, logprob)
        put = lambda array, value: jax.lax.dynamic_update_slice_in_dim(array, value[:, :, None], step, 2)  # noqa: E731
        return {
            "step": step + 1,
            "token": token,
            "ended": ended | jnp.isin(token, eos),
            "lengths": state["lengths"] + ~ended,
            "tokens": put(state["tokens"], token),
            "logprobs": put(state["logprobs"], logprob),
            "cache": cache,
        }

    state = jax.lax.while_loop(unfinished, body, state)
    return Samples(state["tokens"], state["lengths"], state["logprobs"], state["ended"])


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """A key for each data row: [B] keys from one key and row numbers [B]."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(row)


@jax.named_scope(LOGITS)
def sample_token(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row by the Gumbel maximum.

    Args:
      logits: [B, N, V] float32.
      keys: [B, N] typed PRNG keys.
      sampling: how to draw.

    Returns:
      Tokens and their log-probs (temperature-scaled, untruncated), each [B, N].
    """
    if sampling.temperature == 0:
        scaled = logits
        token = jnp.argmax(scaled, axis=-1)
    else:
        scaled = logits / sampling.temperature
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:])))(keys)
        token = jnp.argmax(_truncate(scaled, sampling.top_k, sampling.top_p) + noise, axis=-1)
    chosen = jnp.take_along_axis(scaled, token[..., None], axis=-1)[..., 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(scaled, axis=-1)


def _truncate(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
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
