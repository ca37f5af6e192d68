"""The least time that this machine could take, from measured rates of matrix products and the work to be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.harness.peers import Worker
from gadjax.models.architecture import ModelConfig


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Weight matrices of a decoder of one shape, as few and as wide as fusing makes them."""

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def size(self) -> int:
        """Number of weights in all of them."""
        return self.inputs * self.outputs * self.count


def matrices(config: ModelConfig, head: bool = True) -> list[Matrices]:
    """The weight matrices that every token of a decoder is multiplied with."""
    hidden, dim, layers = config.hidden_size, config.head_dim, config.num_layers
    found = [
        Matrices("qkv", hidden, (config.num_heads + 2 * config.num_kv_heads) * dim, layers),
        Matrices("o", config.num_heads * dim, hidden, layers),
        Matrices("gate and up", hidden, 2 * config.intermediate_size, layers),
        Matrices("down", config.intermediate_size, hidden, layers),
    ]
    return [*found, Matrices("head", hidden, config.vocab_size, 1)] if head else found


def forward_flops(config: ModelConfig, lengths: Sequence[int], head_tokens: int) -> float:
    """Operations of matrix products and causal attention in one forward pass, without padding.

    Args:
      lengths: tokens of the sequences.
      head_tokens: positions that need logits.
    """
    return config.forward_flops(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), head_tokens)


def update_flops(config: ModelConfig, prompts: Sequence[int], teacher: Sequence[int], samples: Sequence[int]) -> float:
    """Operations that the updates of D and G (with its reference) need at least. A backward pass is two forward ones.

    Args:
      prompts, teacher: tokens of each prompt and of its teacher's response.
      samples: tokens of each sample, by prompt. Every sequence reads its prompt anew.
    """
    count = len(samples) // len(prompts)
    of_samples = [prompts[i // count] + length for i, length in enumerate(samples)]
    of_teacher = [p + t for p, t in zip(prompts, teacher, strict=True)]
    discriminator = forward_flops(config, of_samples + of_teacher, 0)
    generator = forward_flops(config, of_samples, sum(samples))
    return 3 * discriminator + (3 + 1) * generator


class Limits:
    """The machine's rates. A worker measures them each time, next to what they are compared with."""

    def __init__(self, worker: Worker, *, quick: bool = False):
        """`quick`: the large product is a small one, which shows that it works and measures nothing."""
        self._worker, self._large = worker, 128 if quick else 2048

    def peak(self) -> float:
        """Operations per second of a large matrix product."""
        return self._worker.call("peak", size=self._large)

    def bandwidth(self, gigabytes: float) -> float:
        """Bytes per second of reading an array of this size."""
        return self._worker.call("bandwidth", gigabytes=gigabytes)

    def products(self, kinds: Sequence[Matrices], rows: int) -> float:
        """Seconds of the products of `rows` rows of one token with these weights, in the fastest layouts."""
        return self._worker.call("products", rows=rows, kinds=[dataclasses.astuple(m)[1:] for m in kinds])

    def sampling(self, config: ModelConfig, rows: int, steps: float, prompts: Sequence[int]) -> float:
        """Seconds of reading prompts and of decoding `steps` tokens in each of `rows` rows."""
        reading = forward_flops(config, prompts, len(prompts)) / self.peak()
        return reading + steps * self.products(matrices(config), rows)
