"""A discriminator's scores of answers, the one function that gadjax.score, generate and evaluate share.

The architecture of a discriminator's export tells its kind:

    score       a token classifier with one label: the score is its value at the answer's last token, or the mean of
                its values at all tokens of the answer, as config.discriminator.pooling of its run was
    likelihood  a causal language model phi: the score of an answer y to x is log phi(y | x) - log q(y | x), in nats.
                phi is at temperature 1; q is the generator that drew y, at the temperature that y was drawn with,
                untruncated

Both read the very ids that were drawn. So the generator and its discriminator must have one tokenizer, and must render
a chat as the same ids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gadjax.data.bins import multiple_of, round_up
from gadjax.data.chats import Messages
from gadjax.data.packing import one_per_row, padded
from gadjax.data.tokenizer import ChatTokenizer
from gadjax.distill.forward import pooled_scores, response_logprobs
from gadjax.errors import UserError
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model, Params
from gadjax.parallel import mesh as meshes

KINDS = {"score": "score", "lm": "likelihood"}  # of discriminators, by their head
BATCH = 16  # answers that are scored at once, as a rule

_LOGITS_AT_ONCE = 1024  # positions whose logits are in memory at once


def sequence_values(
    model: Model,
    params: Params,
    mesh: Mesh,
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[int] | np.ndarray],
    *,
    pooling: str = "last",
    temperature: float = 1.0,
    batch_size: int = BATCH,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """A number for each response, float64 [responses]: its score, or its log-likelihood in nats, by the model's head.

    Args:
      model: with the "score" head, or with the "lm" head, for log p(response | prompt) under the whole distribution.
      params: its parameters.
      mesh: that the parameters lie on.
      prompts: token ids of each response's prompt.
      responses: token ids, at least one each; at least one response.
      pooling: of the "score" head's values: that of the "last" token, or the "mean" over the response.
      temperature: of the "lm" head's distribution: divides the logits; above 0.
      batch_size: responses in a batch, rounded up to a multiple of the mesh's batch shards.
      done: called after each batch with the number of responses so far.
    """
    values = np.zeros(len(responses))
    for i, value in _by_response(model, params, mesh, prompts, responses, pooling, temperature, batch_size, done):
        values[i] = value.sum()
    return values


def token_nats(
    model: Model,
    params: Params,
    mesh: Mesh,
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[int] | np.ndarray],
    *,
    temperature: float = 1.0,
    batch_size: int = BATCH,
) -> list[np.ndarray]:
    """log p of each token of each response in nats: arrays float64 [its length], whose sums `sequence_values` returns.

    The arguments are those of `sequence_values`; the model has the "lm" head.
    """
    found = _by_response(
        *(model, params, mesh, prompts, responses), "last", temperature, batch_size, done=lambda count: None
    )
    return [nats for _, nats in sorted(found, key=lambda one: one[0])]


def _by_response(
    model: Model,
    params: Params,
    mesh: Mesh,
    prompts,
    responses,
    pooling: str,
    temperature: float,
    batch_size: int,
    done,
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each response, with its score or with the nats of its tokens.

    They are float64: float32 would cost digits of sums, which differences need.
    """
    program = _program(model, mesh, pooling)
    size = multiple_of(batch_size, meshes.batch_shards(mesh))
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        filled = np.resize(chosen, size).tolist()  # the last batch repeats responses, so that all have as many rows
        fields = [array for of_all in (prompts, responses) for array in _padded([of_all[i] for i in filled])]
        fields = meshes.place(tuple(fields), meshes.rows(mesh))
        found = np.asarray(program(params, fields, temperature), np.float64)
        for i, row in zip(chosen, found, strict=False):
            yield i, row if model.head == "score" else row[: len(responses[i])]
        done(start + len(chosen))


def as_scores(head: str, values: np.ndarray, drawn_nats: np.ndarray | None) -> np.ndarray:
    """A discriminator's scores: float64, of the shape of `values`.

    Args:
      head: the discriminator's: "score", or "lm" for the likelihood kind.
      values: of the answers, by `sequence_values` under the discriminator at temperature 1.
      drawn_nats: log q of the answers in nats; the "score" head does without.
    """
    return values if head == "score" else values - drawn_nats


def check_tokenizers(
    generator: ChatTokenizer,
    discriminator: ChatTokenizer,
    chats: Sequence[Messages],
    names: tuple[str, str],
    what: str = "prompt",
) -> None:
    """Refuses a discriminator that would read other tokens than the generator's.

    Args:
      generator: its tokenizer.
      discriminator: its tokenizer.
      chats: the prompts.
      names: of generator and discriminator, for the message.
      what: one of the chats, for the message.

    Raises:
      UserError: their vocabularies differ, or a chat has other ids under the discriminator's chat template.
    """
    one, other = names
    if generator.vocabulary_fingerprint() != discriminator.vocabulary_fingerprint():
        raise UserError(
            f"{other} has another tokenizer than {one}: a discriminator reads the tokens that the model drew, so give "
            "one that was trained with this model or its family"
        )
    both = (tokenizer.prompt_ids_batch(chats) for tokenizer in (generator, discriminator))
    for number, ids in enumerate(zip(*both, strict=True), start=1):
        if not np.array_equal(*ids):
            raise UserError(
                f"{other} has another chat template than {one}: {what} {number} has other tokens; put the same "
                "chat_template.jinja beside both, or export both from one run"
            )


def check_ids(config: ModelConfig, responses: Sequence[Sequence[int] | np.ndarray], name: str) -> None:
    """Refuses responses that hold an id which the model has no row for.

    Raises:
      UserError: naming the model.
    """
    highest = max((int(max(ids)) for ids in responses if len(ids)), default=0)
    if highest >= config.vocab_size:
        raise UserError(
            f"{name} has {config.vocab_size} token ids, but an answer holds id {highest}, which it cannot read; give a "
            "discriminator with the model's vocab_size"
        )


@functools.lru_cache(maxsize=4)
def _program(model: Model, mesh: Mesh, pooling: str) -> Any:
    """The values of a batch, compiled once for all models of an architecture: scores [S], or log-probs [S, T]."""

    def values(params, fields, temperature):
        rows = one_per_row(*fields)
        if model.head == "score":
            return pooled_scores(model, params, rows, pooling)
        return response_logprobs(model, params, rows, temperature=temperature, chunk=_LOGITS_AT_ONCE)[0]

    return jax.jit(values, static_argnums=2, out_shardings=meshes.replicated(mesh))


def _padded(sequences: Sequence[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The sequences padded to one of few widths, and their lengths."""
    return padded(sequences, round_up(max(map(len, sequences)), 8, steps=4))
