"""Kullback-Leibler divergences between a student and an open teacher with the same tokenizer.

q is the student at temperature 1, p the teacher at the temperature that its answers were collected with
(`docs/algorithm.md`, section 6). Both are distributions over whole responses, cut after `limit` tokens: by the chain
rule the divergence of the cut responses is the expected sum of log-ratios over the tokens that are left. It is
estimated by Monte Carlo:

    reverse  E_q[log q - log p], on responses that the student drew
    forward  E_p[log p - log q], on responses that the teacher drew, or on the answers given with the prompts

A student and a teacher may stop at different ids. Responses are drawn until either's, so that both are distributions
over the same sequences. Each model reads the chat under its own template, as it does where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gadjax.errors import UserError
from gadjax.evaluation import statistics
from gadjax.evaluation.cached_model import CachedModel, Done, ResponseTokens
from gadjax.evaluation.local_models import LocalModel, same_vocabulary
from gadjax.evaluation.results import Kl

DRAWN, GIVEN = "drawn", "given"


@dataclasses.dataclass(frozen=True)
class Divergence:
    """In nats, each with its 95 % interval over prompts."""

    per_token: statistics.Estimate
    per_response: statistics.Estimate


def divergence(own: np.ndarray, other: np.ndarray, lengths: np.ndarray, *, seed: int = 0) -> Divergence:
    """E[log own - log other] on responses that `own` drew.

    Args:
      own, other: log-likelihoods of the responses, nats: [prompts, samples].
      lengths: their tokens: [prompts, samples].
      seed: of the bootstrap.
    """
    ratios = np.asarray(own, np.float64) - np.asarray(other, np.float64)
    return Divergence(
        per_token=statistics.ratio_of_means(ratios.sum(axis=1), np.asarray(lengths).sum(axis=1), seed=seed),
        per_response=statistics.mean(ratios.mean(axis=1), seed=seed),
    )


def check_tokenizers(student: LocalModel, teacher: LocalModel) -> None:
    """Refuses a teacher that reads other ids than the student writes.

    Raises:
      UserError: their vocabularies differ.
    """
    if not same_vocabulary(student, teacher):
        raise UserError(
            f"--teacher={teacher.source.given} has another tokenizer than {student.source.name} "
            f"({student.source.given}): a KL needs the same; leave --teacher out, or that model"
        )


def shared_eos(student: LocalModel, teacher: LocalModel) -> tuple[int, ...]:
    """The ids that end a response of either."""
    return tuple(sorted({*student.eos_ids, *teacher.eos_ids}))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Responses to prompts: [samples][prompts]."""

    draws: list[list[ResponseTokens]]

    def flat(self) -> list[tuple[int, ...]]:
        """Token ids, a prompt's samples side by side."""
        return [draw.tokens for of_prompt in zip(*self.draws, strict=True) for draw in of_prompt]

    def lengths(self) -> np.ndarray:
        """Tokens of each: [prompts, samples]."""
        return np.array([[len(draw.tokens) for draw in of_sample] for of_sample in self.draws]).T

    @property
    def samples(self) -> int:
        """To a prompt."""
        return len(self.draws)


def draw_responses(
    answerer: CachedModel,
    prompts: Sequence[np.ndarray],
    limit: int,
    temperature: float,
    samples: int,
    eos_ids: tuple[int, ...],
    done: Done = lambda count: None,
) -> Drawn:
    """Several responses to each prompt, from the whole distribution: a truncated one would make the KL infinite."""
    return Drawn(
        [
            answerer.draw(
                prompts,
                limit,
                temperature,
                sample=sample,
                eos_ids=eos_ids,
                done=lambda count, sample=sample: done(sample * len(prompts) + count),
            )
            for sample in range(samples)
        ]
    )


def likelihoods(
    answerer: CachedModel,
    prompts: Sequence[np.ndarray],
    drawn: Drawn,
    temperature: float,
    done: Done = lambda count: None,
) -> np.ndarray:
    """Log-likelihoods of responses under a model at a temperature: [prompts, samples].

    Raises:
      UserError: a response holds an id that the model has no row for, so that the KL is infinite.
    """
    responses, size = drawn.flat(), answerer.local.config.vocab_size
    if (highest := max(map(max, responses))) >= size:
        raise UserError(
            f"{answerer.local.source.given} has {size} token ids, but a response holds id {highest}: it can never say "
            "so, and the KL is infinite; compare models whose vocab_size is the same"
        )
    repeated = [prompt for prompt in prompts for _ in range(drawn.samples)]
    return answerer.log_likelihoods(repeated, responses, temperature, done=done).reshape(len(prompts), -1)


def as_result(
    reverse: Divergence, forward: Divergence, *, samples: int, forward_on: str, teacher: str, temperature: float
) -> Kl:
    """Both divergences as `results.json` has them."""
    numbers = {}
    for direction, found in (("reverse", reverse), ("forward", forward)):
        for unit in ("per_token", "per_response"):
            estimate = getattr(found, unit)
            names = (f"{direction}_{unit}{end}" for end in ("", "_low", "_high"))
            numbers |= dict(zip(names, estimate, strict=True))
    return Kl(**numbers, samples=samples, forward_on=forward_on, teacher=teacher, teacher_temperature=temperature)
