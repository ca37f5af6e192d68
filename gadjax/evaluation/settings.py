"""The settings of an evaluation, each declared once: the check, the flag and its line of `--help` follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gadjax.errors import UserError
from gadjax.teacher.protocol import LIMIT_FIELDS, request_fields

DRAWN, GIVEN = "drawn", "given"  # the forward KL's responses
OPENAI = "https://api.openai.com/v1"
_DTYPES = ("auto", "float32", "bfloat16")


def _setting(
    default: Any,
    description: str,
    *,
    least: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    judge: bool = False,
) -> Any:
    """A field that is at least `least`, above `above`, or one of `choices`; `judge`: it needs one."""
    metadata = {"description": description, "least": least, "above": above, "choices": choices, "judge": judge}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is done: every choice but the models and the sets of prompts."""

    max_response_length: int = _setting(1536, "Tokens of an answer, at most.", least=1)
    max_prompts: int = _setting(0, "Takes the first so many prompts of each set; 0 takes all.", least=0)
    batch_size: int = _setting(64, "Prompts decoded at once; a stop loses eight batches at most.", least=1)
    dtype: str = _setting("auto", "Dtype of local models; auto: float32 on CPU, else bfloat16.", choices=_DTYPES)
    seed: int = _setting(0, "Seed of samples, the order before the judge, folds and the bootstrap.", least=0)
    base_url: str = _setting(OPENAI, "API of api:MODEL and of the judge, up to /chat/completions.")
    concurrency: int = _setting(16, "Requests under way at once.", least=1)
    requests_timeout: float = _setting(120.0, "Seconds for one attempt at a request.", above=0)
    max_retries: int = _setting(8, "Attempts at a request after the first.", least=0)
    limit_field: str = _setting(LIMIT_FIELDS[0], "Request field that limits an answer's tokens.", choices=LIMIT_FIELDS)
    request_fields: str | Mapping[str, Any] | None = _setting(
        None, "More fields of requests, a JSON object; null leaves a field out."
    )
    input_price: float | None = _setting(None, "Price of a million tokens of prompts, for estimates.", least=0)
    output_price: float | None = _setting(None, "Price of a million tokens of answers.", least=0)
    judge: str | None = _setting(None, "The API's name of the judge; none: no judge.")
    judge_base_url: str | None = _setting(None, "API of judge and reference model; default: --base_url.", judge=True)
    judge_limit_field: str | None = _setting(
        None, "The judge's --limit_field; default: --limit_field.", choices=LIMIT_FIELDS, judge=True
    )
    judge_request_fields: str | Mapping[str, Any] | None = _setting(
        None, "The judge's --request_fields; default: --request_fields.", judge=True
    )
    reference_model: str | None = _setting(None, "Model that writes reference answers; default: the judge.", judge=True)
    references: Mapping[str, str] = _setting(
        dict, "SET=FILE, ...: reference answers to the same chats, in `response`.", judge=True
    )
    judge_teacher: bool = _setting(False, "Judges the teacher's answers of the sets too.", judge=True)
    judge_temperature: float = _setting(0.0, "Temperature of a verdict's first attempt; later: 1 or above.", least=0)
    judge_max_tokens: int = _setting(1024, "Tokens of a verdict, at most.", least=1)
    judge_attempts: int = _setting(3, "Attempts at a readable verdict and at a non-empty reference answer.", least=1)
    base: str | None = _setting(
        None, "Two-sample test: directory or hub id that classifiers start from; none: no test."
    )
    two_sample_folds: int = _setting(5, "Folds of the two-sample test's cross-validation.", least=2)
    two_sample_epochs: int = _setting(3, "Two-sample test: passes over a fold's training answers.", least=1)
    two_sample_learning_rate: float = _setting(1e-5, "Two-sample test: learning rate of the classifiers.", above=0)
    two_sample_temperature: float | None = _setting(
        None, "Two-sample test: temperature of the answers, 0: greedy; default: the sets' own, or 1.", least=0
    )
    teacher: str | None = _setting(
        None, "KL: directory or hub id of a teacher with the models' tokenizer; none: no KL."
    )
    teacher_temperature: float | None = _setting(
        None, "Temperature that the teacher's answers were sampled at; default: the sets' own, or 1.", above=0
    )
    kl_samples: int = _setting(4, "Responses to each prompt that a KL is measured on.", least=1)
    kl_forward: str = _setting(
        DRAWN, "Responses of the forward KL: drawn from --teacher, or given in sets.", choices=(DRAWN, GIVEN)
    )

    blind_pairs: int = _setting(200, "Pairs of answers that blind.html asks about, at most.", least=1)
    votes: Sequence[str] = _setting((), "FILE, ...: people's votes, as blind.html saves them; a file a person.")

    @property
    def prices(self) -> tuple[float, float] | None:
        """Prices of a million tokens of prompts and of answers, or None if they are not known."""
        return None if self.input_price is None else (self.input_price, self.output_price)

    def check(self) -> None:
        """Refuses values outside of their bounds or choices, and settings that need another one.

        Raises:
          UserError: naming the flag.
        """
        for field in dataclasses.fields(self):
            name, value, rule = field.name, getattr(self, field.name), field.metadata
            if value is None and field.default is not None:
                raise UserError(f"--{name} is None; leave it out, or give a value")
            if value is None:
                continue
            if rule["choices"] and value not in rule["choices"]:
                raise UserError(f"--{name}={value}: one of {', '.join(rule['choices'])}")
            if rule["least"] is not None and not rule["least"] <= value < math.inf:
                raise UserError(f"--{name}={value}: a number of at least {rule['least']}")
            if rule["above"] is not None and not rule["above"] < value < math.inf:
                raise UserError(f"--{name}={value}: a number above {rule['above']}")
            if rule["judge"] and value and not self.judge:
                raise UserError(f"--{name} is of the judge, but there is none: give --judge=MODEL, or leave it out")
        for name in ("request_fields", "judge_request_fields"):
            request_fields(getattr(self, name), f"--{name}")
        for name, other in (("input_price", "output_price"), ("output_price", "input_price")):
            if getattr(self, name) is None and getattr(self, other) is not None:
                raise UserError(f"--{name} is missing; give it with the other price, 0 where it is free")


def help_of(field: dataclasses.Field) -> str:
    """The line of `--help` for a setting: its description, and its bounds or choices."""
    rule = field.metadata
    bounds = f" At least {rule['least']}." if rule["least"] is not None else ""
    bounds += f" Above {rule['above']}." if rule["above"] is not None else ""
    return rule["description"] + bounds + (f" One of {', '.join(rule['choices'])}." if rule["choices"] else "")
