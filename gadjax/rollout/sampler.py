"""The rollout: one compiled loop in which slots decode side by side and take the next sample when theirs has ended."""

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
from gadjax.models.decoder import Attend, Decoder
from gadjax.models.model import Model, Params
from gadjax.parallel.mesh import BATCH, batch_shards
from gadjax.rollout import queue as schedule
from gadjax.rollout.draw import Sampling, sample_token
from gadjax.rollout.queue import IDLE, Queue, QueueSizes

# Names of the two loops in the compiled program, by which `gadjax.planning` knows them.
ADMISSIONS, TOKEN_STEPS = "admissions", "token_steps"
_OF_SHARDS = P(BATCH)
_OF_CACHES = P(None, BATCH, "tensor")


@struct.dataclass
class Samples:
    """N responses to each of B prompts."""

    tokens: jax.Array  # [B, N, T] int32, pad_id after the end
    lengths: jax.Array  # [B, N] int32, EOS included
    logprobs: jax.Array  # [B, N, T] float32, nats, of the temperature-scaled, untruncated distribution; 0 after the end
    ended: jax.Array  # [B, N] bool; False where the response was cut at T


@struct.dataclass
class LoopState:
    """What the loop carries. Of what is split over the batch, each shard has its part: slots, places, samples."""

    queue: Queue
    prompts: list[Spans]  # a layer each
    responses: list[Spans]
    samples: Samples  # of samples in a row, [B * N, ...]
    steps: jax.Array  # token steps so far


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
    """Samples `num_samples` responses to each prompt. Pure; jit it with the model, N, sampling and slots static.

    A sample depends on its own key, prompt and number only: not on its place in the batch, its neighbours, padding or
    the number of slots. Log-probs are those the trainer computes on the same tokens (`docs/algorithm.md`, section 3.1).
    At temperature 0 they are of the unscaled distribution.

    Args:
      model: with the "lm" head.
      params: its parameters, already in the dtype to decode in.
      prompt: [B, P], right-padded; B a multiple of the shards that the model's mesh splits a batch into.
      prompt_length: [B]. Prompts of length 0, which must come last in each shard's part, are not sampled.
      keys: [B] typed PRNG keys, one a prompt (`row_keys`).
      num_samples: N.
      sampling: how tokens are drawn.
      slots: samples that are decoded at once, over all devices, whose caches take memory; a multiple of the shards.
        0 for all B * N.

    Returns:
      The samples, and the number of token steps that the loop took, a scalar.
    """
    prompt, prompt_length = jnp.asarray(prompt), jnp.asarray(prompt_length)
    batch, width = prompt.shape
    sizes = sizes_of(model.mesh, batch, width, num_samples, slots)
    loop = _Loop(model, model.bind(params), prompt, prompt_length, keys, sampling, sizes)
    with jax.named_scope(ADMISSIONS):
        state = jax.lax.while_loop(loop.unfinished, loop.one_admission, loop.start())
    grouped = lambda x: x.reshape(batch, num_samples, *x.shape[1:])  # noqa: E731
    return jax.tree.map(grouped, state.samples), state.steps


def row_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """A key for each data row: [B] keys from one key and row numbers [B]."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(row)


def sizes_of(mesh: Mesh | None, batch: int, width: int, num_samples: int, slots: int) -> QueueSizes:
    """Of each shard of a rollout; the arguments are `rollout`'s, `width` that of the prompts."""
    shards = _shards(mesh)
    if batch % shards or slots % shards:
        raise ValueError(f"{batch} prompts and {slots} slots are not divisible by the mesh's {shards} parts of a batch")
    share = batch // shards
    return QueueSizes.of(share, num_samples, min(slots // shards or share * num_samples, share * num_samples), width)


def _shards(mesh: Mesh | None) -> int:
    return batch_shards(mesh) if mesh else 1


class _Reading(NamedTuple):
    """What each slot reads in a step, and draws from."""

    token: jax.Array  # [S]
    position: jax.Array  # [S] in its sequence
    length: jax.Array  # [S] tokens in its response's cache
    seen: jax.Array  # [G] tokens in the prompts' caches
    lanes: Lanes
    keys: jax.Array  # [S]


class _Loop:
    """Two loops, one inside the other: an outer turn reads a chunk of prompts, inner turns draw a token in every slot.

    A slot starts with its prompt's last token, which is therefore not in the prompt's cache but in its own. All shards
    take each turn together, since those of the tensor axis exchange activations in it.
    """

    def __init__(
        self,
        model: Model,
        decoder: Decoder,
        prompt: jax.Array,
        prompt_length: jax.Array,
        keys: jax.Array,
        sampling: Sampling,
        sizes: QueueSizes,
    ):
        self.model, self.decoder, self.layers = model, decoder, decoder.unstacked_layers()
        self.prompt, self.prompt_length, self.keys = prompt, prompt_length, keys
        self.last_token = jnp.take_along_axis(prompt, jnp.maximum(prompt_length - 1, 0)[:, None], axis=1)[:, 0]
        self.sampling, self.sizes, self.shards = sampling, sizes, _shards(model.mesh)

    def start(self) -> LoopState:
        """Nothing is read, nothing is drawn."""
        config, sizes, limit = self.model.config, self.sizes, self.sampling.max_response_length
        layers, heads = range(config.num_layers), self.model.cached_heads
        sizes_of_rows = heads, config.head_dim, config.dtype
        cache = lambda rows, limit: choose.empty_cache(self.model.mesh, rows * self.shards, limit, *sizes_of_rows)  # noqa: E731
        count = self.shards * sizes.prompts * sizes.samples
        samples = Samples(
            tokens=jnp.full((count, limit), self.sampling.pad_id, jnp.int32),
            lengths=jnp.zeros(count, jnp.int32),
            logprobs=jnp.zeros((count, limit), jnp.float32),
            ended=jnp.zeros(count, bool),
        )
        return LoopState(
            queue=self._on_devices(functools.partial(schedule.start, sizes=sizes))(self.prompt_length),
            prompts=[cache(sizes.places, self.prompt.shape[1]) for _ in layers],
            responses=[cache(sizes.slots, limit) for _ in layers],
            samples=samples,
            steps=jnp.int32(0),
        )

    def unfinished(self, state: LoopState) -> jax.Array:
        """Whether prompts wait or samples run."""
        return jnp.any(self._asked(schedule.unread, state) > 0) | jnp.any(self._asked(schedule.in_work, state))

    def one_admission(self, state: LoopState) -> LoopState:
        """An outer turn: reads prompts, then draws until the next can be read."""
        state = self._admit(state)
        with jax.named_scope(TOKEN_STEPS):
            return jax.lax.while_loop(self._decodes, self._step, state)

    def _decodes(self, state: LoopState) -> jax.Array:
        """Whether there is something to draw and no prompts are to be read before.

        Prompts are read when every shard has room for a whole chunk, or one would have slots idle.
        """
        waiting = jnp.any(self._asked(schedule.unread, state) > 0)
        room = jnp.all(self._asked(schedule.has_room, state)) | jnp.any(self._asked(schedule.starves, state))
        return jnp.any(self._asked(schedule.in_work, state)) & ~(waiting & room)

    def _admit(self, state: LoopState) -> LoopState:
        """Reads the next prompts of every shard into free places."""
        queue, tokens, lengths, places = self._on_devices(self._next_prompts)(
            state.queue, self.prompt, self.prompt_length
        )
        fresh = self.decoder.prefill(tokens, lengths)
        of_tokens = P(BATCH, None, "tensor")
        put = self._on_devices(cache_spans.put_rows, (_OF_CACHES, of_tokens, of_tokens, _OF_SHARDS), _OF_CACHES)
        widen = functools.partial(kv_cache.widen, heads=self.model.cached_heads)
        prompts = [
            put(old, widen(key), widen(value), places) for old, (key, value) in zip(state.prompts, fresh, strict=True)
        ]
        return state.replace(queue=queue, prompts=prompts)

    def _next_prompts(self, queue: Queue, prompt: jax.Array, prompt_length: jax.Array) -> tuple:
        queue, numbers, places = schedule.admit(queue, self.sizes)
        return queue, prompt[numbers], jnp.maximum(prompt_length[numbers] - 1, 0), places

    def _step(self, state: LoopState) -> LoopState:
        """An inner turn: refills the slots, reads a token in each and draws the next."""
        queue, reading = self._on_devices(self._refill)(state.queue, self.prompt_length, self.last_token, self.keys)
        responses: list[Spans] = []
        attends = [
            self._attention(reading, prompts, own, responses)
            for prompts, own in zip(state.prompts, state.responses, strict=True)
        ]
        hidden = self.decoder.decode(reading.token, reading.position, self.layers, attends)
        token, logprob = sample_token(self.decoder.logits(hidden), reading.keys, self.sampling, self.model.mesh)
        queue, samples = self._on_devices(self._record)(queue, state.samples, token, logprob)
        return LoopState(queue, state.prompts, responses, samples, state.steps + 1)

    def _refill(self, queue, prompt_length, last_token, keys) -> tuple[Queue, _Reading]:
        queue = schedule.refill(queue, last_token, self.sizes)
        sample = jnp.maximum(queue.sample, 0)
        prompt = sample // self.sizes.samples
        position = prompt_length[prompt] - 1 + queue.length
        seen = jnp.where(queue.prompt == IDLE, 0, prompt_length[jnp.maximum(queue.prompt, 0)] - 1)
        fold_in = jax.vmap(jax.random.fold_in)
        drawn_with = fold_in(fold_in(keys[prompt], sample % self.sizes.samples), queue.length)
        lanes = schedule.lanes(queue, self.sizes)
        return queue, _Reading(queue.token, position, queue.length, seen, lanes, drawn_with)

    def _attention(self, reading: _Reading, prompts: Spans, own: Spans, kept: list[Spans]) -> Attend:
        """Of one layer; its spans with the token in them are appended to `kept`."""

        config = self.model.config
        over = choose.cache_attention(self.model.mesh, config.dtype, config.head_dim)

        def local(query, key, value, prompts, own, reading):
            own = cache_spans.put_token(own, key, value, reading.length)
            seen = prompts, reading.seen, own, reading.length + 1
            return group_attention(query, *seen, reading.lanes, over), own

        heads = P(BATCH, "tensor")
        specs = heads, heads, heads, _OF_CACHES, _OF_CACHES, _OF_SHARDS
        run = self._on_devices(local, specs, (heads, _OF_CACHES))

        def attend(query, key, value):
            widen = functools.partial(kv_cache.widen, heads=self.model.cached_heads)
            mixed, cache = run(query, widen(key), widen(value), prompts, own, reading)
            kept.append(cache)
            return mixed

        return attend

    def _record(self, queue: Queue, samples: Samples, token, logprob) -> tuple[Queue, Samples]:
        length = queue.length + 1
        by_eos = jnp.isin(token, jnp.array(self.sampling.eos_ids, jnp.int32))
        count = self.sizes.prompts * self.sizes.samples
        row = jnp.where(queue.sample == IDLE, count, queue.sample)
        samples = Samples(
            tokens=samples.tokens.at[row, queue.length].set(token, mode="drop"),
            lengths=samples.lengths.at[row].set(length, mode="drop"),
            logprobs=samples.logprobs.at[row, queue.length].set(logprob, mode="drop"),
            ended=samples.ended.at[row].set(by_eos, mode="drop"),
        )
        return schedule.advance(queue, token, by_eos | (length == self.sampling.max_response_length)), samples

    def _asked(self, question: Callable[..., jax.Array], state: LoopState) -> jax.Array:
        """A question of `queue` to all shards, [shards]."""
        arguments = () if question is schedule.unread else (self.sizes,)
        return self._on_devices(lambda queue: question(queue, *arguments))(state.queue)

    def _on_devices(
        self, function: Callable[..., Any], specs: Any = _OF_SHARDS, out: Any = _OF_SHARDS
    ) -> Callable[..., Any]:
        """`function` of one device on every device's part of its arguments: its shard's, as a rule."""
        mesh: Mesh | None = self.model.mesh
        if mesh is None or mesh.size == 1:
            return function
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
