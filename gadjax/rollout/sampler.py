"""The rollout: one compiled program that samples N responses to each of B prompts.

Responses differ in length. If every row of a batch waited for the longest one, most rows would be idle most of the
time. So a fixed number of rows decode side by side, and a row whose response has ended takes the next one (continuous
batching, as in vLLM, but inside one `jax.jit`). The words of this module and of `gadjax.rollout.queue`:

  sample: one response. Sample n of prompt b has the number b * N + n, and samples start in this order.
  slot: one of S rows of the decoding batch. It runs one sample, and holds the KV cache of that sample's response.
  place: one of G rows of the prompts' KV cache. A prompt's N samples share its place, until the last one ends.
  admission: the prefill of the next chunk of C prompts into free places.
  lane: a query's row in attention over the prompts' cache, which has N lanes for each place: one for each sample.
  shard: what one part of the batch's mesh axes holds of all of these. A prompt and its samples stay in one shard.

The program is two nested loops:

  while prompts wait or samples run:                        # ADMISSIONS
      admit a chunk of prompts
      while samples run, until the next chunk has room:     # TOKEN_STEPS
          give the next samples to the idle slots
          in each slot, decode one token: attend over the prompt in its place and over the slot's own response
          record the tokens, and free the slots whose samples have ended
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from gadjax.kernels import cache_spans, choose, kv_cache
from gadjax.kernels.cache_spans import Spans
from gadjax.kernels.group_attention import Lanes, group_attention
from gadjax.models.decoder import Attend
from gadjax.models.model import Model, Params
from gadjax.parallel.mesh import BATCH, batch_shards
from gadjax.rollout.draw import Sampling, sample_token
from gadjax.rollout.queue import IDLE, Queue, QueueSizes

# Names of the two loops in the compiled program, by which `gadjax.planning` finds them.
ADMISSIONS, TOKEN_STEPS = "admissions", "token_steps"
ROWS = P(BATCH)  # arrays whose first axis is split over the shards: slots, places, samples, counters
CACHES = P(None, BATCH, "tensor")


class Samples(struct.PyTreeNode):
    """N responses to each of B prompts."""

    tokens: Any  # [B, N, T] int32, pad_id after the end; all four arrays may be on devices or on the host
    lengths: Any  # [B, N] int32, EOS included
    logprobs: Any  # [B, N, T] float32, nats, of the temperature-scaled, untruncated distribution; 0 after the end
    ended: Any  # [B, N] bool; False if the response was cut at T


class LoopState(struct.PyTreeNode):
    """What both loops carry."""

    queue: Queue
    prompts: list[Spans]  # a layer's KV caches of all places, for each layer
    responses: list[Spans]  # a layer's KV caches of all slots, for each layer
    samples: Samples  # flat: [B * N, ...]
    steps: jax.Array  # number of token steps so far


def rollout(
    model: Model,
    params: Params,
    prompt: jax.Array,
    prompt_length: jax.Array,
    keys: jax.Array,
    num_samples: int,
    sampling: Sampling,
    slots: int = 0,
) -> tuple[Samples, jax.Array]:
    """Samples `num_samples` responses to each prompt.

    Pure: jit it with `model`, `num_samples`, `sampling` and `slots` static. A sample depends only on its prompt, the
    prompt's key and its number n: not on the rest of the batch, padding, the mesh or the number of slots. Log-probs are
    those that training computes on the same tokens (`docs/algorithm.md`, section 3.1). At temperature 0 they are of the
    unscaled distribution.

    Args:
      model: with the "lm" head.
      params: its parameters, in the dtype to decode in.
      prompt: [B, P] tokens, right-padded. B must be a multiple of the shards of the model's mesh.
      prompt_length: [B]. Prompts of length 0 are not sampled; they must come last in each shard.
      keys: [B] typed PRNG keys, one for each prompt (`row_keys`).
      num_samples: N.
      sampling: how tokens are drawn.
      slots: samples that are decoded at once, over all devices; a multiple of the shards. Their caches take memory. 0
        means all B * N.

    Returns:
      The samples, and the number of token steps that the loop took (a scalar).
    """
    prompt, prompt_length = jnp.asarray(prompt), jnp.asarray(prompt_length)
    batch, width = prompt.shape
    sizes = sizes_of(model.mesh, batch, width, num_samples, slots)
    loop = Loop(model, params, (prompt, prompt_length, keys), sampling, sizes)
    with jax.named_scope(ADMISSIONS):
        state = jax.lax.while_loop(loop.unfinished, loop.one_admission, loop.start())
    grouped = lambda x: x.reshape(batch, num_samples, *x.shape[1:])  # noqa: E731
    return jax.tree.map(grouped, state.samples), state.steps


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """[B] keys, one for each data row, from one key and the row numbers [B]."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(row)


def sizes_of(mesh: Mesh | None, batch: int, width: int, num_samples: int, slots: int) -> QueueSizes:
    """The sizes of each shard of a rollout of `batch` prompts of `width` tokens; other arguments as for `rollout`."""
    shards = _shards(mesh)
    if batch % shards or slots % shards:
        raise ValueError(f"{batch} prompts and {slots} slots are not divisible by the mesh's {shards} parts of a batch")
    samples = batch // shards * num_samples
    return QueueSizes.of(batch // shards, num_samples, min(slots // shards or samples, samples), width)


def _shards(mesh: Mesh | None) -> int:
    return batch_shards(mesh) if mesh else 1


class _StepInput(NamedTuple):
    """What a token step reads."""

    token: jax.Array  # [S] the newest token of each slot
    position: jax.Array  # [S] that token's position in its sequence
    length: jax.Array  # [S] tokens in each slot's response cache
    prompt_length: jax.Array  # [G] tokens in each place's prompt cache
    lanes: Lanes
    keys: jax.Array  # [S] the next token is drawn with these


class Loop:
    """The conditions and bodies of the two loops.

    A slot starts by reading its prompt's last token, which therefore lies in the slot's cache and not in the place's.
    All shards take every turn together, because the devices of the tensor axis exchange activations in it.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        inputs: tuple[jax.Array, ...],
        how: Sampling,
        sizes: QueueSizes,
        layers: Any = None,
    ):
        """`layers`: those that an earlier program has unstacked; None unstacks them here."""
        self.model, self.decoder = model, model.bind(params)
        self.layers = self.decoder.unstacked_layers() if layers is None else layers
        prompt, prompt_length, _ = self.prompt, self.prompt_length, self.keys = inputs
        self.last_token = jnp.take_along_axis(prompt, jnp.maximum(prompt_length - 1, 0)[:, None], axis=1)[:, 0]
        self.sampling, self.sizes, self.shards = how, sizes, _shards(model.mesh)
        self.windows = model.config.windows(prompt.shape[1] + how.max_response_length)
        self.widen = functools.partial(kv_cache.widen, heads=model.cached_heads)

    def start(self) -> LoopState:
        """The state before the first turn: empty caches and no tokens."""
        config, sizes, limit = self.model.config, self.sizes, self.sampling.max_response_length
        layers, shape = range(config.num_layers), (self.model.cached_heads, config.head_dim, config.dtype)
        cache = lambda rows, limit: choose.empty_cache(self.model.mesh, rows * self.shards, limit, *shape)  # noqa: E731
        count = self.shards * sizes.prompts * sizes.samples
        samples = Samples(
            tokens=jnp.full((count, limit), self.sampling.pad_id, jnp.int32),
            lengths=jnp.zeros(count, jnp.int32),
            logprobs=jnp.zeros((count, limit), jnp.float32),
            ended=jnp.zeros(count, bool),
        )
        return LoopState(
            queue=self._per_shard(functools.partial(Queue.start, sizes=sizes))(self.prompt_length),
            prompts=[cache(sizes.places, self.prompt.shape[1]) for _ in layers],
            responses=[cache(sizes.slots, limit) for _ in layers],
            samples=samples,
            steps=jnp.int32(0),
        )

    def unfinished(self, state: LoopState) -> jax.Array:
        """Condition of the outer loop: whether prompts wait or samples run."""
        return jnp.any(self._ask(Queue.unread, state) > 0) | jnp.any(self._ask(Queue.in_work, state))

    def one_admission(self, state: LoopState) -> LoopState:
        """Body of the outer loop: admits prompts, then decodes until the next ones can be admitted."""
        state = self._admit(state)
        with jax.named_scope(TOKEN_STEPS):
            return jax.lax.while_loop(self._decodes, self._token_step, state)

    def some_steps(self, state: LoopState, until: jax.Array) -> LoopState:
        """What both loops make of a state until they have taken `until` token steps in all, or have ended."""

        def turn(state: LoopState) -> LoopState:
            # The last call may have stopped between two token steps, where nothing is admitted.
            state = jax.lax.cond(self._decodes(state), lambda state: state, self._admit, state)
            return jax.lax.while_loop(lambda s: self._decodes(s) & (s.steps < until), self._token_step, state)

        return jax.lax.while_loop(lambda s: self.unfinished(s) & (s.steps < until), turn, state)

    def _decodes(self, state: LoopState) -> jax.Array:
        """Condition of the inner loop: whether samples run, and no prompts are to be admitted first.

        Prompts are admitted when every shard has room for a whole chunk, or when slots of some shard would be idle.
        """
        waiting = jnp.any(self._ask(Queue.unread, state) > 0)
        room = jnp.all(self._ask(Queue.has_room, state)) | jnp.any(self._ask(Queue.starves, state))
        return jnp.any(self._ask(Queue.in_work, state)) & ~(waiting & room)

    def _admit(self, state: LoopState) -> LoopState:
        """Reads the next prompts of every shard, and writes their keys and values to free places."""
        inputs = state.queue, self.prompt, self.prompt_length
        queue, tokens, lengths, places = self._per_shard(self._next_prompts)(*inputs)
        fresh = self.decoder.prefill(tokens, lengths)
        keys_values = P(BATCH, None, "tensor")
        put = self._per_shard(cache_spans.put_rows, (CACHES, keys_values, keys_values, ROWS), CACHES)
        prompts = [
            put(old, self.widen(key), self.widen(value), places)
            for old, (key, value) in zip(state.prompts, fresh, strict=True)
        ]
        return state.replace(queue=queue, prompts=prompts)

    def _next_prompts(self, queue: Queue, prompt: jax.Array, prompt_length: jax.Array) -> tuple:
        """The queue after an admission, and the tokens, lengths (without the last token) and places of its prompts."""
        queue, numbers, places = queue.admit()
        return queue, prompt[numbers], jnp.maximum(prompt_length[numbers] - 1, 0), places

    def _token_step(self, state: LoopState) -> LoopState:
        """Body of the inner loop: one token in every slot."""
        # Idle slots take the next samples.
        queue, given = self._per_shard(self._refill)(state.queue, self.prompt_length, self.last_token, self.keys)
        # The decoder reads each slot's newest token. Every layer attends through its caches and stores the token there.
        responses: list[Spans] = []
        attends = [
            self._attention(given, prompts, own, responses, window)
            for prompts, own, window in zip(state.prompts, state.responses, self.windows, strict=True)
        ]
        hidden = self.decoder.decode(given.token, given.position, self.layers, attends)
        # The next token is drawn from the logits, and recorded with its log-prob.
        token, logprob = sample_token(self.decoder.logits(hidden), given.keys, self.sampling, self.model.mesh)
        queue, samples = self._per_shard(self._record)(queue, state.samples, token, logprob)
        return LoopState(queue, state.prompts, responses, samples, state.steps + 1)

    def _refill(self, queue, prompt_length, last_token, keys) -> tuple[Queue, _StepInput]:
        queue = queue.refill(last_token)
        sample = jnp.maximum(queue.sample, 0)
        prompt = sample // self.sizes.samples
        position = prompt_length[prompt] - 1 + queue.length
        cached = jnp.where(queue.prompt == IDLE, 0, prompt_length[jnp.maximum(queue.prompt, 0)] - 1)
        # A token's key is made of the prompt's key, the sample's number and the token's index, and of nothing else.
        fold_in = jax.vmap(jax.random.fold_in)
        token_keys = fold_in(fold_in(keys[prompt], sample % self.sizes.samples), queue.length)
        return queue, _StepInput(queue.token, position, queue.length, cached, queue.lanes(), token_keys)

    def _attention(
        self, given: _StepInput, prompts: Spans, own: Spans, stored: list[Spans], window: int | None
    ) -> Attend:
        """One layer's attention over its caches; appends the response caches with the new token to `stored`."""
        config = self.model.config
        over = choose.cache_attention(self.model.mesh, config.dtype, config.head_dim, window)

        def local(query, key, value, prompts, own, given):
            own = cache_spans.put_token(own, key, value, given.length)
            seen = prompts, given.prompt_length, own, given.length + 1
            return group_attention(query, *seen, given.lanes, over, window), own

        heads = P(BATCH, "tensor")
        run = self._per_shard(local, (heads, heads, heads, CACHES, CACHES, ROWS), (heads, CACHES))

        def attend(query, key, value):
            mixed, cache = run(query, self.widen(key), self.widen(value), prompts, own, given)
            stored.append(cache)
            return mixed

        return attend

    def _record(self, queue: Queue, samples: Samples, token, logprob) -> tuple[Queue, Samples]:
        """Writes a token [S] of every slot to its sample, and frees the slots whose samples have ended."""
        length = queue.length + 1
        by_eos = jnp.isin(token, jnp.array(self.sampling.eos_ids, jnp.int32))
        row = jnp.where(queue.sample == IDLE, self.sizes.prompts * self.sizes.samples, queue.sample)  # idle: dropped
        samples = Samples(
            tokens=samples.tokens.at[row, queue.length].set(token, mode="drop"),
            lengths=samples.lengths.at[row].set(length, mode="drop"),
            logprobs=samples.logprobs.at[row, queue.length].set(logprob, mode="drop"),
            ended=samples.ended.at[row].set(by_eos, mode="drop"),
        )
        return queue.advance(token, by_eos | (length == self.sampling.max_response_length)), samples

    def _ask(self, question: Callable[[Queue], jax.Array], state: LoopState) -> jax.Array:
        """[shards] the answer of every shard's queue."""
        return self._per_shard(question)(state.queue)

    def _per_shard(self, function: Callable[..., Any], specs: Any = ROWS, out_specs: Any = ROWS) -> Callable:
        """`function`, applied by each device to its part of the arguments."""
        mesh = self.model.mesh
        if mesh is None or mesh.size == 1:
            return function
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
