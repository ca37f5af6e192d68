"""The judge at work: reference answers and verdicts, each asked for once. The cache's keys are the requests."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gadjax.data.prompts import Prompt
from gadjax.evaluation.api import Endpoint, Say, ask_all, key_of
from gadjax.evaluation.judge import MalformedVerdict, Verdict, order_of, question, read_verdict
from gadjax.evaluation.prompt_sets import Response
from gadjax.evaluation.responses import from_row, write_jsonl
from gadjax.evaluation.result_cache import ResultCache
from gadjax.evaluation.settings import EvaluationSettings
from gadjax.progress import ProgressCallback
from gadjax.teacher.protocol import RequestSettings

_RETRY_TEMPERATURE = 1.0  # a model that is asked greedily would say the same again


class JudgeEndpoints(NamedTuple):
    """Where the judge and the reference model are asked, and under which names."""

    settings: EvaluationSettings
    judge: Endpoint
    reference_model: str
    reference: Endpoint


class References(NamedTuple):
    """Reference answers.

    Attributes:
      found: by set: an answer to each prompt, or None.
      unanswered: why the API gave no answer, by what was asked; the next evaluation asks again.
      blank: answers that were empty at every attempt. They were paid for; they are not asked for again.
    """

    found: dict[str, list[Response | None]]
    unanswered: dict[str, str]
    blank: list[str]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A pair of answers to a prompt, with the judge's last text about it and the verdict, None if it is malformed."""

    prompt_set: str
    id: str
    model: str
    order: str
    text: str
    verdict: Verdict | None


class Judgements(NamedTuple):
    """All verdicts. A pair is either among `judged` or among `unanswered`.

    Attributes:
      judged: the pairs that the judge gave a text about.
      retried: the number of verdicts that were asked for again.
      unanswered: why the API gave no answer, by what was asked.
    """

    judged: list[Judged]
    retried: int
    unanswered: dict[str, str]

    def of(self, prompt_set: str, model: str) -> tuple[dict[str, Verdict], int]:
        """A model's verdicts by the prompt's id, and its number of malformed ones."""
        found = [one for one in self.judged if (one.prompt_set, one.model) == (prompt_set, model)]
        return {one.id: one.verdict for one in found if one.verdict}, sum(one.verdict is None for one in found)

    @property
    def malformed(self) -> int:
        """The number of pairs without a readable verdict."""
        return sum(one.verdict is None for one in self.judged)


def ask_references(
    endpoints: JudgeEndpoints,
    sets: Mapping[str, Sequence[Prompt]],
    cache: ResultCache,
    *,
    say: Say,
    watch: ProgressCallback,
) -> References:
    """The reference model's answers to each set's prompts: greedy at first, sampled if the first was empty."""
    s, model, endpoint = endpoints.settings, endpoints.reference_model, endpoints.reference
    chats = [prompt.content for prompts in sets.values() for prompt in prompts]
    found: list[Response | None] = [None] * len(chats)
    why: dict[int, str] = {}
    waiting = list(range(len(chats)))
    for attempt in range(1, s.judge_attempts + 1):
        temperature = 0.0 if attempt == 1 else _RETRY_TEMPERATURE
        sampling = RequestSettings(temperature, 1.0, s.max_response_length)
        client = endpoint.client(model, sampling)
        keys = {i: key_of(client, chats[i], attempt) for i in waiting}
        what = f"reference answers by {model}" + (f", attempt {attempt} at empty ones" if attempt > 1 else "")
        questions = {keys[i]: chats[i] for i in waiting}
        failures = ask_all(endpoint, model, sampling, questions, cache, what=what, say=say, watch=watch)
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
    endpoints: JudgeEndpoints,
    sets: Mapping[str, Sequence[Prompt]],
    references: Mapping[str, Sequence[Response | None]],
    answers: Mapping[str, Mapping[str, Sequence[Response | None]]],
    cache: ResultCache,
    *,
    say: Say,
    watch: ProgressCallback,
) -> Judgements:
    """Verdicts on all answers beside their references; equal questions, of models that answer alike, are asked once.

    Args:
      endpoints: of the judge.
      sets: prompts by set.
      references: reference answers by set.
      answers: by set and model.
      cache: holds the verdicts so far, and gets the new ones.
      say, watch: get estimates and progress.
    """
    s, model, endpoint = endpoints.settings, endpoints.settings.judge, endpoints.judge
    # What is judged, with the question that the judge is asked.
    pairs = []
    for name, prompts in sets.items():
        for answering, responses in answers[name].items():
            for prompt, reference, response in zip(prompts, references[name], responses, strict=True):
                if reference is None or response is None:
                    continue
                order = order_of(s.seed, name, prompt.id)
                asked = question(prompt.content, reference.text, response.text, order)
                pairs.append((Judged(name, prompt.id, answering, order, "", None), asked))
    done: dict[int, Judged] = {}
    unanswered: dict[str, str] = {}
    retried, waiting = 0, list(range(len(pairs)))
    for attempt in range(1, s.judge_attempts + 1):
        # Ask for the verdicts that are missing or malformed.
        temperature = s.judge_temperature if attempt == 1 else max(s.judge_temperature, _RETRY_TEMPERATURE)
        sampling = RequestSettings(temperature, 1.0, s.judge_max_tokens)
        client = endpoint.client(model, sampling)
        keys = {i: key_of(client, pairs[i][1], attempt) for i in waiting}
        questions = {keys[i]: pairs[i][1] for i in waiting}
        retried += len(questions) if attempt > 1 else 0
        what = f"verdicts by {model}" + (f", attempt {attempt} at malformed ones" if attempt > 1 else "")
        failures = ask_all(endpoint, model, sampling, questions, cache, what=what, say=say, watch=watch)
        # Read them.
        malformed = []
        for i in waiting:
            judged = pairs[i][0]
            if keys[i] not in cache:
                named = f"verdict on {judged.model}'s answer to {judged.id!r} of {judged.prompt_set}"
                unanswered[named] = failures[keys[i]]
                done.pop(i, None)  # an earlier malformed text does not count: the next evaluation asks again
                continue
            text = cache[keys[i]]["text"]
            try:
                verdict = read_verdict(text, judged.order)
            except MalformedVerdict:
                verdict = None
                malformed.append(i)
            done[i] = dataclasses.replace(judged, text=text, verdict=verdict)
        waiting = malformed
        if not waiting:
            break
    return Judgements([done[i] for i in sorted(done)], retried, unanswered)


def write_verdicts(path: pathlib.Path, judged: Sequence[Judged]) -> None:
    """Writes all verdicts as JSONL; the scores of malformed ones are null."""
    rows = []
    for one in judged:
        scores = {name: getattr(one.verdict, name, None) for name in ("score", "reference_score")}
        head = {"set": one.prompt_set, "id": one.id, "model": one.model}
        rows.append(head | scores | {"order": one.order, "text": one.text})
    write_jsonl(path, rows)
