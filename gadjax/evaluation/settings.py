"""The settings of an evaluation, each declared once: the check, the flag and its line of `--help` follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gadjax.errors import UserError
from gadjax.teacher.protocol import LIMIT_FIELDS, request_fields

DRAWN, GIVEN = "drawn", "given"  # the forward KL's responses


def _setting(
    default: Any,
    description: str,
    *,
    least: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    of_judge: bool = False,
) -> Any:
    """A field that is at least `least`, above `above`, or one of `choices`; `of_judge`: it says nothing without one."""
    metadata = {"description": description, "least": least, "above": above, "choices": choices, "of_judge": of_judge}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is done: every choice but the models and the sets of prompts."""

    max_response_length: int = _setting(1536, "Tokens of an answer, at most.", least=1)
    max_prompts: int = _setting(0, "Takes the first so many prompts of each set; 0 takes all.", least=0)
    batch_size: int = _setting(64, "Prompts decoded at once; a stop loses eight batches at most.", least=1)
    dtype: str = _setting(
        "auto",
        "Dtype of local models; auto: float32 on CPU, else bfloat16.",
        choices=("auto", "float32", "bfloat16"),
    )
    seed: int = _setting(0, "Seed of samples, the order before the judge, folds and the bootstrap.", least=0)
    base_url: str = _setting("https://api.openai.com/v1", "API of api:MODEL and the judge, up to /chat/completions.")
    concurrency: int = _setting(16, "Requests under way at once.", least=1)
    requests_timeout: float = _setting(120.0, "Seconds for one attempt at a request.", above=0)
    max_retries: int = _setting(8, "Attempts at a request after the first.", least=0)
    limit_field: str = _setting(
        LIMIT_FIELDS[0], "Field of a request that limits the answer's tokens.", choices=LIMIT_FIELDS
    )
    request_fields: str | Mapping[str, Any] | None = _setting(
        None, "More fields of a request, a JSON object; null leaves one out."
    )
    input_price: float | None = _setting(
        None, "Price of a million tokens of prompts, in any currency; estimates then have a cost.", least=0
    )
    output_price: float | None = _setting(None, "Price of a million tokens of answers.", least=0)
    judge: str | None = _setting(None, "The API's name of the judge; none: no answer is judged.")
    judge_base_url: str | None = _setting(
        None, "The API of the judge and the reference model; default: --base_url.", of_judge=True
    )
    judge_limit_field: str | None = _setting(
        None, "--limit_field of their requests; default: --limit_field.", choices=LIMIT_FIELDS, of_judge=True
    )
    judge_request_fields: str | Mapping[str, Any] | None = _setting(
        None, "--request_fields of their requests; default: --request_fields.", of_judge=True
    )
    reference_model: str | None = _setting(
        None, "The API's name of the model that writes reference answers; default: the judge.", of_judge=True
    )
    references: Mapping[str, str] = _setting(
        dict, "SET=FILE, ...: files with reference answers to the same chats, in `response`.", of_judge=True
    )
    judge_teacher: bool = _setting(False, "Judges the teacher's answers of the sets too.", of_judge=True)
    judge_temperature: float = _setting(
        0.0, "Temperature of the first attempt at a verdict; later ones are drawn at 1 or above.", least=0
    )
    judge_max_tokens: int = _setting(1024, "Tokens of a verdict, at most.", least=1)
    judge_attempts: int = _setting(
        3, "Attempts at a verdict that can be read, and at a reference answer that is not empty.", least=1
    )
    base: str | None = _setting(
        None, "Directory or hub id that the two-sample test's classifiers start from; none: no two-sample test."
    )
    two_sample_folds: int = _setting(5, "Folds of the two-sample test's cross-validation.", least=2)
    two_sample_epochs: int = _setting(3, "Passes over the training answers of a fold.", least=1)
    two_sample_learning_rate: float = _setting(1e-5, "Learning rate of the classifiers.", above=0)
    two_sample_temperature: float | None = _setting(
        None,
        "Temperature of the answers that are tested, 0: the greedy ones; default: that of the sets, or 1.",
        least=0,
    )
    teacher: str | None = _setting(
        None, "Directory or hub id of an open teacher with the models' tokenizer; none: no KL."
    )
    teacher_temperature: float | None = _setting(
        None, "Temperature that the teacher's answers were sampled at; default: that of the sets, or 1.", above=0
    )
    kl_samples: int = _setting(4, "Responses to each prompt that a KL is measured on.", least=1)
    kl_forward: str = _setting(
        DRAWN,
        "Responses of the forward KL: drawn from --teacher, or the answers given with the sets.",
        choices=(DRAWN, GIVEN),
    )

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
            if value is None and "None" not in field.type:
                raise UserError(f"--{name} is None; leave it out, or give a value")
            if value is None:
                continue
            if rule["choices"] and value not in rule["choices"]:
                raise UserError(f"--{name}={value}: one of {', '.join(rule['choices'])}")
            if rule["least"] is not None and not rule["least"] <= value < math.inf:
                raise UserError(f"--{name}={value}: a number of at least {rule['least']}")
            if rule["above"] is not None and not rule["above"] < value < math.inf:
                raise UserError(f"--{name}={value}: a number above {rule['above']}")
            if rule["of_judge"] and value and not self.judge:
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
