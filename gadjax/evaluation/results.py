"""`results.json`: what an evaluation found, as a tree of dataclasses that is checked when it is read."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from gadjax.errors import UserError
from gadjax.evaluation.vote_results import HumanVotes
from gadjax.files import expand, whole_output, writing

FORMAT = 1
FILE = "results.json"
TEACHER = "teacher"  # the teacher's own entry among the scores of a set


@dataclasses.dataclass(frozen=True)
class BestOf:
    """How a model's answers were chosen, if each is the best of several draws by a discriminator.

    Attributes:
      samples: draws for each prompt.
      temperature: of the draws where other models answer greedily.
      discriminator: directory or hub id.
      kind: of the discriminator, "score" or "likelihood"; None until its files are read.
    """

    samples: int
    temperature: float
    discriminator: str
    kind: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A model that was evaluated; `step` and `stage` are those of a run's checkpoint."""

    name: str
    source: str
    kind: str  # "checkpoint", "export" or "api"
    step: int | None
    stage: str | None
    best_of: BestOf | None = None  # files of earlier versions lack it


@dataclasses.dataclass(frozen=True)
class EvaluatedSet:
    """A set of prompts that every model answered; `sha256` is that of the file."""

    name: str
    path: str
    prompts: int
    sha256: str
    has_teacher: bool


@dataclasses.dataclass(frozen=True)
class Judge:
    """The judge; `malformed` counts pairs without a readable verdict, `retried` verdicts that were asked for again."""

    model: str
    base_url: str
    reference_model: str
    malformed: int
    retried: int


@dataclasses.dataclass(frozen=True)
class Histogram:
    """`counts[i]` answers have lengths from `edges[i]` up to `edges[i + 1]`; the last bin includes its upper edge."""

    edges: list[float]
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of a set's answers in `settings.length_unit`; `truncated` is the share that the limit cut."""

    mean: float
    p50: float
    p95: float
    truncated: float
    histogram: Histogram


@dataclasses.dataclass(frozen=True)
class JudgeScore:
    """100 · mean(s / (s + s_ref)) with its 95 % bootstrap interval over prompts; 50 is parity with the reference."""

    score: float
    low: float
    high: float
    judged: int
    malformed: int


@dataclasses.dataclass(frozen=True)
class TwoSampleScore:
    """The accuracy of fresh classifiers on prompts that they did not see; 0.5 is indistinguishable.

    Attributes:
      accuracy: share of answers, half of them the teacher's, that were classified correctly.
      low, high: 95 % bootstrap interval over prompts.
      prompts: number of different prompts.
    """

    accuracy: float
    low: float
    high: float
    prompts: int


@dataclasses.dataclass(frozen=True)
class Kl:
    """Kullback-Leibler divergences in nats, with 95 % bootstrap intervals over prompts (`gadjax.evaluation.kl`).

    Attributes:
      samples: responses to each prompt that were drawn from a model.
      forward_on: "drawn" from the teacher, or the "given" answers of the set.
      teacher_temperature: of the teacher's distribution; the model's is 1.
    """

    reverse_per_token: float
    reverse_per_token_low: float
    reverse_per_token_high: float
    reverse_per_response: float
    reverse_per_response_low: float
    reverse_per_response_high: float
    forward_per_token: float
    forward_per_token_low: float
    forward_per_token_high: float
    forward_per_response: float
    forward_per_response_low: float
    forward_per_response_high: float
    samples: int
    forward_on: str
    teacher: str
    teacher_temperature: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of a model's answers to a set; `distinct` and `ngram_f1` are by n, as text."""

    prompts: int
    lengths: Lengths
    distinct: dict[str, float]
    rouge_l: float | None
    ngram_f1: dict[str, float] | None
    judge: JudgeScore | None
    two_sample: TwoSampleScore | None
    kl: Kl | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The number of prompts on which the judge scores `a` above, equal to and below `b`; `p` is two-sided.

    `difference` is the mean of `a`'s judge score minus `b`'s on the same prompts, in points of 100, with its 95 %
    bootstrap interval over prompts. It is None without prompts, and in files of earlier versions.
    """

    a: str
    b: str
    win: int
    tie: int
    lose: int
    p: float
    test: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """The first run among the models; the report's curves are from its metrics.jsonl."""

    workdir: str


@dataclasses.dataclass(frozen=True)
class Results:
    """The contents of `results.json`; `scores` are by set and model, `comparisons` by set, `votes` people's."""

    format: int
    gadjax: str
    created: str
    models: list[EvaluatedModel]
    sets: list[EvaluatedSet]
    settings: dict[str, Any]
    judge: Judge | None
    scores: dict[str, dict[str, Scores]]
    comparisons: dict[str, list[Comparison]]
    verdicts: str | None
    run: EvaluatedRun | None
    votes: HumanVotes | None = None  # files of earlier versions lack it


def write_results(directory: pathlib.Path, results: Results) -> pathlib.Path:
    """Writes `directory/results.json`, whole or not at all, and returns its path.

    Raises:
      UserError: it cannot be written.
      ValueError: a number is not finite, which JSON cannot hold.
    """
    path = directory / FILE
    text = json.dumps(dataclasses.asdict(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_output(path) as partial, writing(path):
        partial.write_text(text, encoding="utf-8")
    return path


def read_results(directory: str | os.PathLike[str]) -> Results:
    """The results that `write_results` wrote.

    Raises:
      UserError: there are none, or the file is damaged or of another format; the message names the field.
    """
    import pydantic

    path = expand(directory) / FILE
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run gadjax.evaluate --out={path.parent}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run gadjax.evaluate --out={path.parent} again") from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: its format is {found!r}, but this gadjax reads {FORMAT}; evaluate again")
    try:
        results = pydantic.TypeAdapter(Results).validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        said = {"missing": "is missing", "unexpected_keyword_argument": "is not a field of this format"}.get(
            first["type"]
        )
        said = said or f"is {json.dumps(first['input'])[:60]}: {first['msg']}"
        raise UserError(f"{path}: `{'.'.join(map(str, first['loc']))}` {said}; evaluate again") from None
    _check(results, path)
    return results


# Types must be exact (no text for a number), every field must be there, and no other; numbers are finite.
Results.__pydantic_config__ = {  # type: ignore[attr-defined]  # pydantic reads it
    "strict": True,
    "extra": "forbid",
    "allow_inf_nan": False,
}


def _check(results: Results, path: pathlib.Path) -> None:
    """Checks what types alone do not say."""
    models, sets = [model.name for model in results.models], [prompts.name for prompts in results.sets]
    for field in ("scores", "comparisons"):
        if strange := getattr(results, field).keys() - set(sets):
            raise UserError(f"{path}: {field} has a set {min(strange)!r}, which is not among its sets")
    for name in sets:
        if missing := set(models) - results.scores.get(name, {}).keys():
            raise UserError(f"{path}: scores.{name} lacks the model {min(missing)!r}")
        for model, scores in results.scores[name].items():
            histogram = scores.lengths.histogram
            if len(histogram.edges) != len(histogram.counts) + 1:
                raise UserError(f"{path}: scores.{name}.{model}.lengths.histogram needs one more edge than counts")
