"""Reference answers and verdicts, asked for once each: their keys are the requests themselves."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

from gadjax.data.prompts import Prompt
from gadjax.evaluation.api import Endpoint, Say, Watch, ask_all, key_of
from gadjax.evaluation.candidates import Response, from_row
from gadjax.evaluation.journal import Journal
from gadjax.evaluation.judge import MalformedVerdict, Verdict, order_of, question, read_verdict
from gadjax.files import whole_output, writing
from gadjax.teacher.client import Sampling

_RETRY_TEMPERATURE = 1.0  # a judge that is drawn greedily would say the same again


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how.

    Attributes:
      model: the API's name of the judge.
      endpoint: where it is asked.
      reference_model: that writes the reference answers.
      reference_endpoint: where that is asked.
      temperature: of the first attempt at a verdict; later ones are drawn at 1 at least.
      max_tokens: of a verdict.
      reference_max_tokens: of a reference answer.
      attempts: at a verdict that can be read.
      seed: of the order.
    """

    model: str
    endpoint: Endpoint
    reference_model: str
    reference_endpoint: Endpoint
    temperature: float = 0.0
    max_tokens: int = 1024
    reference_max_tokens: int = 1536
    attempts: int = 3
    seed: int = 0

    def sampling(self, attempt: int) -> Sampling:
        """Of an attempt at a verdict, counted from 1."""
        temperature = self.temperature if attempt == 1 else max(self.temperature, _RETRY_TEMPERATURE)
        return Sampling(temperature, 1.0, self.max_tokens)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A prompt's pair of answers: the last thing that the judge said of it, and what could be read of that."""

    prompt_set: str
    id: str
    model: str
    order: str
    text: str
    verdict: Verdict | None


@dataclasses.dataclass(frozen=True)
class Judgements:
    """All verdicts. `retried`: those asked for once more; `unanswered`: why the API gave none, by what was asked."""

    judged: list[Judged]
    retried: int
    unanswered: dict[str, str]

    def of(self, prompt_set: str, model: str) -> tuple[dict[str, Verdict], int]:
        """Verdicts by the prompt's id, and how many were malformed."""
        found = [one for one in self.judged if (one.prompt_set, one.model) == (prompt_set, model)]
        return {one.id: one.verdict for one in found if one.verdict}, sum(one.verdict is None for one in found)

    @property
    def malformed(self) -> int:
        """Pairs without a verdict that can be read."""
        return sum(one.verdict is None for one in self.judged)


def ask_references(
    settings: JudgeSettings, sets: Mapping[str, Sequence[Prompt]], journal: Journal, *, say: Say, watch: Watch
) -> tuple[dict[str, list[Response | None]], dict[str, str]]:
    """The reference model's greedy answers to each set's prompts, None where it gave none; and why it gave none."""
    sampling = Sampling(0.0, 1.0, settings.reference_max_tokens)
    client = settings.reference_endpoint.client(settings.reference_model, sampling)
    keys = {name: [key_of(client, prompt.content) for prompt in prompts] for name, prompts in sets.items()}
    questions = {
        key: prompt.content for name, prompts in sets.items() for key, prompt in zip(keys[name], prompts, strict=True)
    }
    failures = ask_all(
        settings.reference_endpoint,
        settings.reference_model,
        sampling,
        questions,
        journal,
        what=f"reference answers by {settings.reference_model}",
        say=say,
        watch=watch,
    )
    found, why = {}, {}
    for name, prompts in sets.items():
        found[name] = []
        for key, prompt in zip(keys[name], prompts, strict=True):
            response = from_row(journal[key]) if key in journal else None
            if response is None or not response.text.strip():
                why[f"reference answer to {prompt.id!r} of {name}"] = failures.get(key, "the reference answer is empty")
                response = None
            found[name].append(response)
    return found, why


def judge_all(
    settings: JudgeSettings,
    sets: Mapping[str, Sequence[Prompt]],
    references: Mapping[str, Sequence[Response | None]],
    answers: Mapping[str, Mapping[str, Sequence[Response | None]]],
    journal: Journal,
    *,
    say: Say,
    watch: Watch,
) -> Judgements:
    """A verdict on every answer beside its reference. Equal questions, of models that answer alike, are asked once.

    Args:
      references: by set.
      answers: by set and model.
    """
    pairs = []  # what is judged, and the question
    for name, prompts in sets.items():
        for model, responses in answers[name].items():
            for prompt, reference, response in zip(prompts, references[name], responses, strict=True):
                if reference is None or response is None:
                    continue
                order = order_of(settings.seed, name, prompt.id)
                asked = question(prompt.content, reference.text, response.text, order)
                pairs.append((Judged(name, prompt.id, model, order, "", None), asked))
    done: dict[int, Judged] = {}
    unanswered: dict[str, str] = {}
    retried, waiting = 0, list(range(len(pairs)))
    for attempt in range(1, settings.attempts + 1):
        sampling = settings.sampling(attempt)
        client = settings.endpoint.client(settings.model, sampling)
        keys = {i: key_of(client, pairs[i][1], attempt) for i in waiting}
        questions = {keys[i]: pairs[i][1] for i in waiting}
        retried += len(questions) if attempt > 1 else 0
        what = f"verdicts by {settings.model}" + (f", attempt {attempt} at malformed ones" if attempt > 1 else "")
        failures = ask_all(
            settings.endpoint, settings.model, sampling, questions, journal, what=what, say=say, watch=watch
        )
        still = []
        for i in waiting:
            judged = pairs[i][0]
            if keys[i] not in journal:
                what = f"verdict on {judged.model}'s answer to {judged.id!r} of {judged.prompt_set}"
                unanswered[what] = failures[keys[i]]
                continue
            text = journal[keys[i]]["text"]
            try:
                verdict = read_verdict(text, judged.order)
            except MalformedVerdict:
                verdict = None
                still.append(i)
            done[i] = dataclasses.replace(judged, text=text, verdict=verdict)
        waiting = still
        if not waiting:
            break
    return Judgements([done[i] for i in sorted(done)], retried, unanswered)


def write_verdicts(path: pathlib.Path, judged: Sequence[Judged]) -> None:
    """JSONL of all verdicts, malformed ones with null scores; whole or not at all."""
    lines = (
        {
            "set": one.prompt_set,
            "id": one.id,
            "model": one.model,
            "score": one.verdict and one.verdict.score,
            "reference_score": one.verdict and one.verdict.reference_score,
            "order": one.order,
            "text": one.text,
        }
        for one in judged
    )
    with whole_output(path) as partial, writing(path):
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
