"""How an evaluation is done: every choice but the models and the prompts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from gadjax.errors import UserError
from gadjax.teacher.protocol import LIMIT_FIELDS, request_fields

_OF_JUDGE = (
    "reference_model",
    "references",
    "judge_teacher",
    "judge_base_url",
    "judge_limit_field",
    "judge_request_fields",
)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The choices; each is a flag of the command of the same name.

    Attributes:
      max_response_length: tokens of an answer at most.
      max_prompts: of each set, the first so many; 0 for all.
      batch_size: prompts decoded at once by a model of this machine.
      dtype: of such models: "auto" is float32 on CPU, else bfloat16.
      seed: of samples, the judge's order, folds and bootstrap.
      base_url, concurrency, requests_timeout, max_retries: of API models: where, requests at once, seconds for an
        attempt, attempts after the first.
      limit_field: the field of their requests that says how long an answer may be.
      request_fields: more of their requests, a JSON object as text or as a mapping; null leaves a field out.
      input_price, output_price: of a million tokens, in any currency, for the estimates; None leaves costs out.
      judge: the API's name of the judge; None for no judge.
      judge_base_url, judge_limit_field, judge_request_fields: of requests to it and to the reference model; None for
        `base_url`, `limit_field`, `request_fields`.
      reference_model: writes the reference answers; None for the judge.
      references: files with reference answers, by set.
      judge_teacher: whether the teacher's answers are judged as a model's are.
      judge_temperature, judge_max_tokens, judge_attempts: of a verdict: the first attempt's temperature, tokens, and
        attempts until one can be read.
      base: the checkpoint that classifiers of the two-sample test grow from; None for no test.
      two_sample_folds, two_sample_epochs, two_sample_learning_rate, two_sample_temperature: of the test; at temperature
        0 it is of the greedy answers; None for that of the sets' files, 1 where they do not say.
      teacher: an open teacher with the models' tokenizer; None for no KL.
      teacher_temperature: that its answers were collected with; None for that of the sets' files, 1 where they do not
        say.
      kl_samples: responses to a prompt that a KL is measured on.
      kl_forward: the forward KL's responses: "drawn" from the teacher, or the "given" answers of the set.
    """

    max_response_length: int = 1536
    max_prompts: int = 0
    batch_size: int = 64
    dtype: str = "auto"
    seed: int = 0
    base_url: str = "https://api.openai.com/v1"
    concurrency: int = 16
    requests_timeout: float = 120.0
    max_retries: int = 8
    limit_field: str = LIMIT_FIELDS[0]
    request_fields: str | Mapping[str, Any] | None = None
    input_price: float | None = None
    output_price: float | None = None
    judge: str | None = None
    judge_base_url: str | None = None
    judge_limit_field: str | None = None
    judge_request_fields: str | Mapping[str, Any] | None = None
    reference_model: str | None = None
    references: Mapping[str, str] = dataclasses.field(default_factory=dict)
    judge_teacher: bool = False
    judge_temperature: float = 0.0
    judge_max_tokens: int = 1024
    judge_attempts: int = 3
    base: str | None = None
    two_sample_folds: int = 5
    two_sample_epochs: int = 3
    two_sample_learning_rate: float = 1e-5
    two_sample_temperature: float | None = None
    teacher: str | None = None
    teacher_temperature: float | None = None
    kl_samples: int = 4
    kl_forward: Literal["drawn", "given"] = "drawn"

    @property
    def prices(self) -> tuple[float, float] | None:
        """Of a million tokens of prompts and of answers, where they are known."""
        return None if self.input_price is None else (self.input_price, self.output_price)

    def check(self) -> None:
        """Refuses numbers that mean nothing, and choices that need another one.

        Raises:
          UserError: naming the flag.
        """
        counts = ("max_response_length", "batch_size", "concurrency", "judge_max_tokens", "judge_attempts")
        least = dict.fromkeys((*counts, "two_sample_epochs", "kl_samples"), 1)
        least |= {"max_prompts": 0, "max_retries": 0, "two_sample_folds": 2, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UserError(f"--{name}={getattr(self, name)}: at least {lowest}")
        for name in ("requests_timeout", "two_sample_learning_rate", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"--{name}={value}: a number above 0")
        for name in ("judge_temperature", "two_sample_temperature"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UserError(f"--{name}={value}: a number that is not below 0")
        choices = {"dtype": ("auto", "float32", "bfloat16"), "kl_forward": ("drawn", "given")}
        choices |= {"limit_field": LIMIT_FIELDS, "judge_limit_field": (None, *LIMIT_FIELDS)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"--{name}={getattr(self, name)}: one of {', '.join(filter(None, known))}")
        for name in ("request_fields", "judge_request_fields"):
            request_fields(getattr(self, name), f"--{name}")
        for name in ("input_price", "output_price"):
            price = getattr(self, name)
            if price is None and (self.input_price, self.output_price) != (None, None):
                raise UserError(f"--{name} is missing; give it with the other price, 0 where it is free")
            if price is not None and not (price >= 0 and math.isfinite(price)):
                raise UserError(f"--{name}={price}: a number that is not below 0")
        for name in _OF_JUDGE:
            if getattr(self, name) and not self.judge:
                raise UserError(f"--{name} is of the judge, but there is none: give --judge=MODEL, or leave it out")
