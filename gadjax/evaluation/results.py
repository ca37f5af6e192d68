"""`results.json`: what an evaluation found, as a tree of dataclasses, written whole and read with checks."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import types
import typing
from typing import Any

from gadjax.errors import UserError
from gadjax.files import expand, whole_output, writing

FORMAT = 1
FILE = "results.json"
TEACHER = "teacher"  # the teacher's own entry among the scores of a set


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """What was evaluated. `step` and `stage` are of a run's checkpoint."""

    name: str
    source: str
    kind: str  # "checkpoint", "export" or "api"
    step: int | None = None
    stage: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluatedSet:
    """Prompts that every model answered. `sha256`: of the file."""

    name: str
    path: str
    prompts: int
    sha256: str
    has_teacher: bool


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judged. `malformed`: pairs that got no verdict that can be read; `retried`: verdicts asked for once more."""

    model: str
    base_url: str
    reference_model: str
    malformed: int
    retried: int


@dataclasses.dataclass(frozen=True)
class Histogram:
    """`counts[i]` answers are from `edges[i]` up to `edges[i + 1]` long; the last edge belongs to the last bin."""

    edges: list[float]
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of a set's answers, in the unit `settings.length_unit`; `truncated`: the share that was cut at the limit."""

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
    """See `gadjax.evaluation.two_sample.TwoSample`."""

    accuracy: float
    low: float
    high: float
    prompts: int


@dataclasses.dataclass(frozen=True)
class Kl:
    """Kullback-Leibler divergences in nats, with 95 % bootstrap intervals over prompts (`gadjax.evaluation.kl`).

    Attributes:
      samples: responses to a prompt that were drawn from a model.
      forward_on: "drawn" from the teacher, or the "given" answers of the set.
      teacher_temperature: of p; the model's is 1.
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
    """What is known of a model's answers to a set; `distinct` and `ngram_f1` by n, as text."""

    prompts: int
    lengths: Lengths
    distinct: dict[str, float]
    rouge_l: float | None = None
    ngram_f1: dict[str, float] | None = None
    judge: JudgeScore | None = None
    two_sample: TwoSampleScore | None = None
    kl: Kl | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """On how many prompts the judge puts `a` above, level with and below `b`; `p` of the named test, two-sided."""

    a: str
    b: str
    win: int
    tie: int
    lose: int
    p: float
    test: str


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """The first run among the models; its metrics.jsonl has the curves."""

    workdir: str


@dataclasses.dataclass(frozen=True)
class Results:
    """All of `results.json`. `scores`: by set and model; `comparisons`: by set."""

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


def write_results(directory: pathlib.Path, results: Results) -> pathlib.Path:
    """Writes `directory/results.json`, whole or not at all, and gives its path.

    Raises:
      UserError: it cannot be written.
      ValueError: a number is not finite, which JSON has no way to say.
    """
    path = directory / FILE
    text = json.dumps(dataclasses.asdict(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_output(path) as partial, writing(path):
        partial.write_text(text, encoding="utf-8")
    return path


def read_results(directory: str | os.PathLike[str]) -> Results:
    """The results that `write_results` wrote.

    Raises:
      UserError: there are none, or the file is damaged or of another format; it names the field.
    """
    path = expand(directory) / FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run gadjax.evaluate --out={path.parent}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); run gadjax.evaluate --out={path.parent} again") from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: its format is {found!r}, but this gadjax reads {FORMAT}; evaluate again")
    results = _read(Results, value, str(path))
    _check(results, path)
    return results


def _check(results: Results, path: pathlib.Path) -> None:
    """What the types alone don't say."""
    models, sets = [model.name for model in results.models], [prompts.name for prompts in results.sets]
    for field in ("scores", "comparisons"):
        if strange := getattr(results, field).keys() - set(sets):
            raise UserError(f"{path}: {field} tells of a set {min(strange)!r}, which is not among its sets")
    for name in sets:
        if missing := set(models) - results.scores.get(name, {}).keys():
            raise UserError(f"{path}: scores.{name} lacks the model {min(missing)!r}")
        for model, scores in results.scores[name].items():
            histogram = scores.lengths.histogram
            if len(histogram.edges) != len(histogram.counts) + 1:
                raise UserError(f"{path}: scores.{name}.{model}.lengths.histogram needs one more edge than counts")


def _read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as what the annotation `kind` says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _read(next(option for option in arguments if option is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
        value = _typed(value, dict, "an object", where)
        if missing := [field.name for field in fields if field.name not in value]:
            raise UserError(f"{where}: `{missing[0]}` is missing; evaluate again")
        if strange := value.keys() - hints.keys():
            raise UserError(f"{where}: `{min(strange)}` is not a field of this format; evaluate again")
        return kind(**{name: _read(hint, value[name], f"{where}: {name}") for name, hint in hints.items()})
    if origin is list:
        items = _typed(value, list, "a list", where)
        return [_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        items = _typed(value, dict, "an object", where)
        return {name: _read(arguments[1], item, f"{where}.{name}") for name, item in items.items()}
    if kind is float:
        number = _typed(value, (int, float), "a number", where)
        if not math.isfinite(number):
            raise UserError(f"{where}: {number} is not finite; evaluate again")
        return float(number)
    names = {int: "a whole number", str: "text", bool: "true or false"}
    return _typed(value, kind, names[kind], where)


def _typed(value: Any, kind: Any, name: str, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: {json.dumps(value)[:60]} where {name} is expected; evaluate again")
    return value
