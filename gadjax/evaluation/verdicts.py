"""Reference answers and verdicts, asked for once each: their keys are the requests themselves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence

from gadjax.data.prompts import Prompt
from gadjax.evaluation.api import Endpoint, Say, ask_all, key_of
from gadjax.evaluation.judge import MalformedVerdict, Verdict, order_of, question, read_verdict
from gadjax.evaluation.prompt_sets import Response
from gadjax.evaluation.responses import from_row
from gadjax.evaluation.result_cache import ResultCache
from gadjax.files import whole_output, writing
from gadjax.progress import ProgressCallback
from gadjax.teacher.protocol import RequestSettings

_RETRY_TEMPERATURE = 1.0  # a model that is drawn greedily would say the same again


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
      attempts: at a verdict that can be read, and at a reference answer that is not empty.
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

    def sampling(self, attempt: int) -> RequestSettings:
        """Of an attempt at a verdict, counted from 1."""
        temperature = self.temperature if attempt == 1 else max(self.temperature, _RETRY_TEMPERATURE)
        return RequestSettings(temperature, 1.0, self.max_tokens)

    def reference_sampling(self, attempt: int) -> RequestSettings:
        """Of an attempt at a reference answer, counted from 1: greedy at first."""
        return RequestSettings(0.0 if attempt == 1 else _RETRY_TEMPERATURE, 1.0, self.reference_max_tokens)


@dataclasses.dataclass(frozen=True)
class References:
    """Reference answers.

    Attributes:
      found: by set, to each prompt; None where there is none.
      unanswered: why the API gave none, by what was asked; the next evaluation asks again.
      blank: those that were empty at every attempt, which were paid for; no other attempt is made.
    """

    found: dict[str, list[Response | None]]
    unanswered: dict[str, str]
    blank: list[str]


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
    """All verdicts. `retried`: those asked for once more; `unanswered`: why the API gave none, by what was asked.

    A pair is either among `judged`, with the last thing that was said of it, or unanswered.
    """

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
    settings: JudgeSettings,
    sets: Mapping[str, Sequence[Prompt]],
    cache: ResultCache,
    *,
    say: Say,
    watch: ProgressCallback,
) -> References:
    """The reference model's answers to each set's prompts: greedy ones, empty ones asked again, drawn then."""
    chats = [prompt.content for prompts in sets.values() for prompt in prompts]
    found: list[Response | None] = [None] * len(chats)
    why: dict[int, str] = {}
    waiting = list(range(len(chats)))
    for attempt in range(1, settings.attempts + 1):
        sampling = settings.reference_sampling(attempt)
        client = settings.reference_endpoint.client(settings.reference_model, sampling)
        keys = {i: key_of(client, chats[i], attempt) for i in waiting}
        what = f"reference answers by {settings.reference_model}"
        what += f", attempt {attempt} at empty ones" if attempt > 1 else ""
        failures = ask_all(
            settings.reference_endpoint,
            settings.reference_model,
            sampling,
            {keys[i]: chats[i] for i in waiting},
            cache,
            what=what,
            say=say,
            watch=watch,
        )
        why |= {i: failures[keys[i]] for i in waiting if keys[i] not in cache}
        given = {i: from_row(cache[keys[i]]) for i in waiting if i not in why}
        for i, response in given.items():
            if response.text.strip():
                found[i] = response
        waiting = [i for i in given if found[i] is None]
        if not waiting:
            break
    names = [f"reference answer to {prompt.id!r} of {name}" for name, prompts in sets.items() for prompt in prompts]
    rest = iter(found)
    return References(
        {name: list(itertools.islice(rest, len(prompts))) for name, prompts in sets.items()},
        {names[i]: reason for i, reason in sorted(why.items())},
        [names[i] for i in waiting],
    )


def judge_all(
    settings: JudgeSettings,
    sets: Mapping[str, Sequence[Prompt]],
    references: Mapping[str, Sequence[Response | None]],
    answers: Mapping[str, Mapping[str, Sequence[Response | None]]],
    cache: ResultCache,
    *,
    say: Say,
    watch: ProgressCallback,
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
            settings.endpoint, settings.model, sampling, questions, cache, what=what, say=say, watch=watch
        )
        still = []
        for i in waiting:
            judged = pairs[i][0]
            if keys[i] not in cache:
                what = f"verdict on {judged.model}'s answer to {judged.id!r} of {judged.prompt_set}"
                unanswered[what] = failures[keys[i]]
                done.pop(i, None)  # what an earlier attempt said is not the last word: this one is asked again
                continue
            text = cache[keys[i]]["text"]
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
