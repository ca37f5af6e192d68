"""Kullback-Leibler divergences between a student and an open teacher with the same tokenizer.

q is the student at temperature 1, p the teacher at the temperature that its answers were sampled at. Both are
distributions over whole responses that are cut after `limit` tokens. By the chain rule, the divergence of cut responses
is the expected sum of the log-ratios of their tokens, which is estimated by Monte Carlo:

    reverse  E_q[log q - log p], on responses that the student drew
    forward  E_p[log p - log q], on responses that the teacher drew, or on the answers given with the prompts

A student and a teacher may end responses with different ids. Responses are drawn until an id of either, so that both
are distributions over the same sequences. Each model reads the chat under its own template. See docs/algorithm.md,
section 6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gadjax.errors import UserError
from gadjax.evaluation import statistics
from gadjax.evaluation.cached_model import CachedModel, Done, ResponseTokens
from gadjax.evaluation.local_models import LocalModel, same_vocabulary
from gadjax.evaluation.results import Kl


class Divergence(NamedTuple):
    """A divergence in nats, per token and per response, with 95 % intervals over prompts."""

    per_token: statistics.Estimate
    per_response: statistics.Estimate


def divergence(own: np.ndarray, other: np.ndarray, lengths: np.ndarray, *, seed: int = 0) -> Divergence:
    """E[log own - log other] on responses that `own` drew.

    Args:
      own, other: log-likelihoods of the responses in nats: [prompts, samples].
      lengths: their numbers of tokens: [prompts, samples].
      seed: of the bootstrap.
    """
    ratios = np.asarray(own, np.float64) - np.asarray(other, np.float64)
    return Divergence(
        per_token=statistics.ratio_of_means(ratios.sum(axis=1), np.asarray(lengths).sum(axis=1), seed=seed),
        per_response=statistics.mean(ratios.mean(axis=1), seed=seed),
    )


def check_tokenizers(student: LocalModel, teacher: LocalModel) -> None:
    """Refuses a teacher whose ids mean other tokens than the student's.

    Raises:
      UserError: their vocabularies differ.
    """
    if not same_vocabulary(student, teacher):
        raise UserError(
            f"--teacher={teacher.source.given} has another tokenizer than {student.source.name} "
            f"({student.source.given}): a KL needs the same; leave --teacher out, or that model"
        )


def shared_eos(student: LocalModel, teacher: LocalModel) -> tuple[int, ...]:
    """The ids that end a response of either model."""
    return tuple(sorted({*student.eos_ids, *teacher.eos_ids}))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Responses to prompts: [samples][prompts]."""

    draws: list[list[ResponseTokens]]

    def flat(self) -> list[tuple[int, ...]]:
        """The responses' token ids, one prompt's samples after the other."""
        return [draw.tokens for of_prompt in zip(*self.draws, strict=True) for draw in of_prompt]

    def lengths(self) -> np.ndarray:
        """The responses' numbers of tokens: [prompts, samples]."""
        return np.array([[len(draw.tokens) for draw in of_sample] for of_sample in self.draws]).T


def draw_responses(
    model: CachedModel,
    prompts: Sequence[np.ndarray],
    limit: int,
    temperature: float,
    samples: int,
    eos_ids: tuple[int, ...],
    done: Done = lambda count: None,
) -> Drawn:
    """Draws `samples` responses to each prompt, from the whole distribution: truncation would make the KL infinite."""
    draws = []
    for sample in range(samples):
        before = sample * len(prompts)
        told = lambda count, before=before: done(before + count)  # noqa: E731
        draws.append(model.draw(prompts, limit, temperature, sample=sample, eos_ids=eos_ids, done=told))
    return Drawn(draws)


def likelihoods(model: CachedModel, prompts: Sequence[np.ndarray], drawn: Drawn, temperature: float) -> np.ndarray:
    """The log-likelihoods of responses under a model at a temperature, in nats: [prompts, samples].

    Raises:
      UserError: a response holds an id that the model has no row for, so that the KL is infinite.
    """
    responses, size = drawn.flat(), model.local.config.vocab_size
    if (highest := max(map(max, responses))) >= size:
        raise UserError(
            f"{model.local.source.given} has {size} token ids, but a response holds id {highest}, which it can never "
            "say, so the KL is infinite; compare models with the same vocab_size"
        )
    repeated = [prompt for prompt in prompts for _ in drawn.draws]
    return model.log_likelihoods(repeated, responses, temperature).reshape(len(prompts), -1)


def as_result(
    reverse: Divergence, forward: Divergence, *, samples: int, forward_on: str, teacher: str, temperature: float
) -> Kl:
    """Both divergences as an entry of `results.json`."""
    numbers: dict[str, Any] = {}
    for direction, found in (("reverse", reverse), ("forward", forward)):
        for unit, estimate in found._asdict().items():
            names = (f"{direction}_{unit}{end}" for end in ("", "_low", "_high"))
            numbers |= dict(zip(names, estimate, strict=True))
    return Kl(**numbers, samples=samples, forward_on=forward_on, teacher=teacher, teacher_temperature=temperature)
