"""Which sample is in which slot: the schedule of a rollout, as integers of one shard of the batch.

Samples wait in the order in which they came, the N of a prompt one after another; nothing here knows how long one will
be. A prompt is admitted to a *place*, where its cache lies for as long as samples of it wait or run; a sample runs in a
*slot*. Counters are arrays of one element, so that those of all shards make one array that is split like the rest.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from gadjax.kernels.group_attention import Lanes

IDLE = -1
_PREFILL_TOKENS = 1024  # that are read at once, about: enough rows for a matrix product to be bound by computing


@dataclasses.dataclass(frozen=True)
class QueueSizes:
    """Of one shard of a rollout.

    Attributes:
      prompts: B, that it samples responses to.
      samples: N, of each prompt.
      slots: S, samples that run at once.
      places: G, prompts whose caches are held at once.
      chunk: C, prompts that are read at once.
    """

    prompts: int
    samples: int
    slots: int
    places: int
    chunk: int

    @property
    def admissions(self) -> int:
        """Times that prompts are read where all shards have room at once."""
        return -(-self.prompts // self.chunk)

    def steps(self, limit: int) -> int:
        """Token steps where every sample has `limit` tokens."""
        return -(-self.prompts * self.samples // self.slots) * limit

    @classmethod
    def of(cls, prompts: int, samples: int, slots: int, width: int) -> QueueSizes:
        """QueueSizes with enough places that slots are seldom idle while prompts wait.

        The samples of a prompt end at different times: with places for twice the prompts that fill the slots, a
        prompt's last samples hold up no others until they are twice as long as its mean. `width`: of the prompts.
        """
        filling = -(-slots // samples)
        chunk = max(1, min(_PREFILL_TOKENS // width, filling))
        return cls(prompts, samples, slots, min(prompts, min(slots, 2 * filling) + chunk), min(prompts, chunk))


@struct.dataclass
class Queue:
    """State of the schedule. Samples are numbered prompt * N + n."""

    waiting: jax.Array  # [1] prompts there are, admitted or not
    admitted: jax.Array  # [1] prompts that have or had a place
    assigned: jax.Array  # [1] samples that have or had a slot
    prompt: jax.Array  # [G] the prompt in each place; IDLE
    sample: jax.Array  # [S] the sample in each slot; IDLE
    place: jax.Array  # [S] where its prompt is
    length: jax.Array  # [S] its response tokens so far
    token: jax.Array  # [S] the last token of what it has: of its prompt, then of its response


def start(prompt_length: jax.Array, sizes: QueueSizes) -> Queue:
    """All slots and places are free; of the prompts [B], those of length 0 are none."""
    zero = jnp.zeros(1, jnp.int32)
    waiting = _count(prompt_length > 0)
    idle = jnp.full(sizes.slots, IDLE, jnp.int32)
    free = jnp.full(sizes.places, IDLE, jnp.int32)
    return Queue(waiting, zero, zero, free, idle, *[jnp.zeros(sizes.slots, jnp.int32)] * 3)


def admit(queue: Queue, sizes: QueueSizes) -> tuple[Queue, jax.Array, jax.Array]:
    """Gives the next prompts places: as many as wait and fit, C at most.

    Returns:
      The queue, the prompts' numbers [C], each a valid one, and their places [C], G for those that get none.
    """
    free = _free_places(queue, sizes)
    count = jnp.minimum(jnp.minimum(sizes.chunk, _count(free)), queue.waiting - queue.admitted)  # [1]
    turn = jnp.arange(sizes.chunk, dtype=jnp.int32)
    numbers = queue.admitted + turn
    places = jnp.argsort(~free, stable=True)[: sizes.chunk]
    places = jnp.where(turn < count, places, sizes.places)
    prompt = queue.prompt.at[places].set(numbers, mode="drop")
    queue = queue.replace(admitted=queue.admitted + count, prompt=prompt)
    return queue, jnp.minimum(numbers, sizes.prompts - 1), places


def refill(queue: Queue, last_token: jax.Array, sizes: QueueSizes) -> Queue:
    """Puts the next samples of admitted prompts into the idle slots.

    Args:
      last_token: [B] of each prompt: the first that a slot reads.
    """
    idle = queue.sample == IDLE
    sample = queue.assigned + jnp.cumsum(idle, dtype=jnp.int32) - 1
    taken = idle & (sample < queue.admitted * sizes.samples)
    prompt = jnp.clip(sample // sizes.samples, 0, sizes.prompts - 1)
    place = jnp.argmax(queue.prompt == prompt[:, None], axis=-1)
    put = lambda new, old: jnp.where(taken, new, old).astype(jnp.int32)  # noqa: E731
    return queue.replace(
        assigned=queue.assigned + _count(taken),
        sample=put(sample, queue.sample),
        place=put(place, queue.place),
        length=put(0, queue.length),
        token=put(last_token[prompt], queue.token),
    )


def lanes(queue: Queue, sizes: QueueSizes) -> Lanes:
    """Where each slot's prompt is, and back."""
    count = sizes.places * sizes.samples
    lane = queue.place * sizes.samples + queue.sample % sizes.samples
    running = jnp.where(queue.sample == IDLE, count, lane)
    slot = jnp.zeros(count, jnp.int32).at[running].set(jnp.arange(sizes.slots, dtype=jnp.int32), mode="drop")
    return Lanes(slot, lane)


def advance(queue: Queue, token: jax.Array, ended: jax.Array) -> Queue:
    """After a token [S] of every slot; those that `ended` [S] leave their slots. Idle slots stay at length 0."""
    idle = ended | (queue.sample == IDLE)
    return queue.replace(
        length=jnp.where(idle, 0, queue.length + 1), token=token, sample=jnp.where(idle, IDLE, queue.sample)
    )


def in_work(queue: Queue, sizes: QueueSizes) -> jax.Array:
    """[1] whether a sample runs or can: its prompt has a place."""
    return jnp.any(queue.sample != IDLE, keepdims=True) | (_ready(queue, sizes) > 0)


def unread(queue: Queue) -> jax.Array:
    """[1] prompts without a place yet."""
    return queue.waiting - queue.admitted


def has_room(queue: Queue, sizes: QueueSizes) -> jax.Array:
    """[1] whether a whole chunk of prompts, or all that are left, can be admitted."""
    return _count(_free_places(queue, sizes)) >= jnp.minimum(sizes.chunk, unread(queue))


def starves(queue: Queue, sizes: QueueSizes) -> jax.Array:
    """[1] whether a slot is idle, prompts wait, and a chunk of them can be admitted."""
    return (_count(queue.sample == IDLE) > _ready(queue, sizes)) & (unread(queue) > 0) & has_room(queue, sizes)


def _count(flags: jax.Array) -> jax.Array:
    """[1] of those that are set."""
    return jnp.sum(flags, keepdims=True, dtype=jnp.int32)


def _ready(queue: Queue, sizes: QueueSizes) -> jax.Array:
    """[1] samples without a slot whose prompts have places."""
    return queue.admitted * sizes.samples - queue.assigned


def _free_places(queue: Queue, sizes: QueueSizes) -> jax.Array:
    """[G] whether no sample of a place's prompt waits or runs."""
    waits = (queue.prompt != IDLE) & ((queue.prompt + 1) * sizes.samples > queue.assigned)
    runs = (queue.place == jnp.arange(sizes.places)[:, None]) & (queue.sample != IDLE)
    return ~waits & ~jnp.any(runs, axis=-1)
