"""The schedule of a rollout: which sample runs in which slot, and which prompt's cache lies in which place.

The words are defined in `gadjax.rollout.sampler`. Everything here is integer arithmetic on the state of one shard. The
schedule never knows how long a sample will become.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from gadjax.kernels.group_attention import Lanes

IDLE = -1
_PREFILL_TOKENS = 1024  # of one admission, about: enough rows for a matrix product to be bound by computing


@dataclasses.dataclass(frozen=True)
class QueueSizes:
    """Sizes of one shard of a rollout.

    Attributes:
      prompts: B, prompts to sample responses to.
      samples: N, samples of each prompt.
      slots: S, samples that run at once.
      places: G, prompts whose caches are held at once.
      chunk: C, prompts that one admission reads.
    """

    prompts: int
    samples: int
    slots: int
    places: int
    chunk: int

    @classmethod
    def of(cls, prompts: int, samples: int, slots: int, width: int) -> QueueSizes:
        """Chooses C and G for prompts of `width` tokens, so that slots are seldom idle while prompts wait.

        The samples of a prompt end at different times, and its place is taken until the last one ends. There are places
        for twice the prompts that fill the slots: a sample may then become twice as long as the mean before a waiting
        prompt lacks a place.
        """
        filling = -(-slots // samples)
        chunk = max(1, min(_PREFILL_TOKENS // width, filling))
        return cls(prompts, samples, slots, min(prompts, min(slots, 2 * filling) + chunk), min(prompts, chunk))


class Queue(struct.PyTreeNode):
    """State of one shard's schedule.

    Counters have one element, so that the counters of all shards form one array that is split like the others.
    """

    waiting: jax.Array  # [1] number of prompts, admitted or not
    admitted: jax.Array  # [1] prompts that have or had a place
    assigned: jax.Array  # [1] samples that have or had a slot
    prompt: jax.Array  # [G] the prompt in each place, or IDLE
    sample: jax.Array  # [S] the sample in each slot, or IDLE
    place: jax.Array  # [S] the place of that sample's prompt
    length: jax.Array  # [S] response tokens of that sample so far
    token: jax.Array  # [S] its newest token: the prompt's last one, then the response's
    sizes: QueueSizes = struct.field(pytree_node=False)

    @classmethod
    def start(cls, prompt_length: jax.Array, sizes: QueueSizes) -> Queue:
        """A queue with all slots and places free. Prompts [B] of length 0 are not sampled."""
        zero, waiting = jnp.zeros(1, jnp.int32), _count(prompt_length > 0)
        idle = jnp.full(sizes.slots, IDLE, jnp.int32)
        free = jnp.full(sizes.places, IDLE, jnp.int32)
        none = jnp.zeros(sizes.slots, jnp.int32)
        return cls(waiting, zero, zero, free, idle, none, none, none, sizes)

    def admit(self) -> tuple[Queue, jax.Array, jax.Array]:
        """Gives places to the next prompts: as many as wait and fit, at most C.

        Returns:
          The queue; the prompts' numbers [C], padded with valid ones; their places [C], padded with G.
        """
        free = self._free_places()
        count = jnp.minimum(jnp.minimum(self.sizes.chunk, _count(free)), self.waiting - self.admitted)  # [1]
        turn = jnp.arange(self.sizes.chunk, dtype=jnp.int32)
        numbers = self.admitted + turn
        places = jnp.argsort(~free, stable=True)[: self.sizes.chunk]  # free places first
        places = jnp.where(turn < count, places, self.sizes.places)
        prompt = self.prompt.at[places].set(numbers, mode="drop")
        queue = self.replace(admitted=self.admitted + count, prompt=prompt)
        return queue, jnp.minimum(numbers, self.sizes.prompts - 1), places

    def refill(self, last_token: jax.Array) -> Queue:
        """Gives the next samples of admitted prompts to the idle slots.

        Args:
          last_token: [B] the last token of each prompt, which a slot reads first.
        """
        sizes, idle = self.sizes, self.sample == IDLE
        sample = self.assigned + jnp.cumsum(idle, dtype=jnp.int32) - 1
        taken = idle & (sample < self.admitted * sizes.samples)
        prompt = jnp.clip(sample // sizes.samples, 0, sizes.prompts - 1)
        place = jnp.argmax(self.prompt == prompt[:, None], axis=-1)
        put = lambda new, old: jnp.where(taken, new, old).astype(jnp.int32)  # noqa: E731
        return self.replace(
            assigned=self.assigned + _count(taken),
            sample=put(sample, self.sample),
            place=put(place, self.place),
            length=put(0, self.length),
            token=put(last_token[prompt], self.token),
        )

    def lanes(self) -> Lanes:
        """The lane of each slot, and the slot in each lane."""
        count = self.sizes.places * self.sizes.samples
        lane = self.place * self.sizes.samples + self.sample % self.sizes.samples
        running = jnp.where(self.sample == IDLE, count, lane)
        slot = jnp.zeros(count, jnp.int32).at[running].set(jnp.arange(self.sizes.slots, dtype=jnp.int32), mode="drop")
        return Lanes(slot, lane)

    def advance(self, token: jax.Array, ended: jax.Array) -> Queue:
        """Appends a token [S] to each slot's sample, and frees the slots whose samples `ended` [S]."""
        idle = ended | (self.sample == IDLE)
        length, sample = jnp.where(idle, 0, self.length + 1), jnp.where(idle, IDLE, self.sample)
        return self.replace(length=length, token=token, sample=sample)

    def in_work(self) -> jax.Array:
        """[1] whether a sample runs, or could: its prompt has a place."""
        return jnp.any(self.sample != IDLE, keepdims=True) | (self._ready() > 0)

    def unread(self) -> jax.Array:
        """[1] number of prompts that have not had a place yet."""
        return self.waiting - self.admitted

    def has_room(self) -> jax.Array:
        """[1] whether there are places for a whole chunk of prompts, or for all that are left."""
        return _count(self._free_places()) >= jnp.minimum(self.sizes.chunk, self.unread())

    def starves(self) -> jax.Array:
        """[1] whether a slot stays idle although prompts wait and a chunk of them has room."""
        return (_count(self.sample == IDLE) > self._ready()) & (self.unread() > 0) & self.has_room()

    def _ready(self) -> jax.Array:
        """[1] number of samples that wait for a slot and whose prompts have places."""
        return self.admitted * self.sizes.samples - self.assigned

    def _free_places(self) -> jax.Array:
        """[G] whether no sample of a place's prompt waits or runs."""
        waits = (self.prompt != IDLE) & ((self.prompt + 1) * self.sizes.samples > self.assigned)
        runs = (self.place == jnp.arange(self.sizes.places)[:, None]) & (self.sample != IDLE)
        return ~waits & ~jnp.any(runs, axis=-1)


def _count(flags: jax.Array) -> jax.Array:
    """[1] number of flags that are set."""
    return jnp.sum(flags, keepdims=True, dtype=jnp.int32)
