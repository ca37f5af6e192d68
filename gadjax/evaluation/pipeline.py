"""An evaluation from end to end: checks, answers, scores, the judge, files."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gadjax
from gadjax.errors import UserError
from gadjax.evaluation import results as schema
from gadjax.evaluation.api import Endpoint, Say
from gadjax.evaluation.judge import judge_score
from gadjax.evaluation.model_sources import API, REFERENCE, ModelSource, parse_source
from gadjax.evaluation.prompt_sets import (
    PromptSet,
    Response,
    common_temperature,
    other_temperatures,
    read_references,
    read_set,
)
from gadjax.evaluation.responses import (
    TOKENS,
    WORDS,
    ask_api,
    count_lengths,
    select,
    with_token_counts,
    write_answers,
)
from gadjax.evaluation.result_cache import ResultCache
from gadjax.evaluation.results import TEACHER, Results, write_results
from gadjax.evaluation.settings import EvaluationSettings
from gadjax.evaluation.statistics import compare
from gadjax.evaluation.table import write_table
from gadjax.evaluation.text import length_figures, text_scores
from gadjax.evaluation.verdicts import Judgements, JudgeSettings, References, ask_references, judge_all, write_verdicts
from gadjax.files import expand, writing
from gadjax.progress import ProgressCallback
from gadjax.teacher.protocol import RequestSettings

VERDICTS = "verdicts.jsonl"
CACHE = "cache"

Answers = dict[str, dict[str, list[Response]]]  # by set and model


class Evaluated(NamedTuple):
    """What an evaluation found, and what it lacks.

    Attributes:
      results: as in `results.json`.
      unanswered: why the judge's API gave no answer, by what was asked; the next evaluation asks again.
      blank: reference answers that were empty at every attempt.
    """

    results: Results
    unanswered: dict[str, str]
    blank: list[str]


class Evaluation:
    """One evaluation: `Evaluation(...)` checks everything that can be known before a model is loaded; `run` does it."""

    def __init__(
        self,
        models: Mapping[str, str],
        sets: Mapping[str, str],
        out: pathlib.Path,
        settings: EvaluationSettings,
        *,
        say: Say,
        watch: ProgressCallback,
    ):
        """The arguments are those of `gadjax.evaluate.run`.

        Raises:
          UserError: at the first that cannot work.
        """
        settings.check()
        if not models or not sets:
            raise UserError(f"--{'sets' if models else 'models'} is empty: name at least one")
        self.out, self.settings, self.say, self.watch = out, settings, say, watch
        self.sources = [parse_source(name, given) for name, given in models.items()]
        self.sets = [read_set(name, path, max_prompts=settings.max_prompts) for name, path in sets.items()]
        self.references = self._references()
        self.endpoint = Endpoint(
            settings.base_url,
            settings.concurrency,
            settings.requests_timeout,
            settings.max_retries,
            settings.limit_field,
            settings.request_fields,
            settings.prices,
            {"--model": "--models"},
        )
        for source in self.sources:
            if source.kind == API:
                self.endpoint.client(source.where, RequestSettings(0.0, 1.0, 1))
        self.judge = self._judge_settings()
        with_teacher = [prompts for prompts in self.sets if prompts.teacher]
        if settings.base and not with_teacher:
            raise UserError("--base is of the two-sample test, but no set of --sets has the teacher's answers")
        if settings.kl_forward == "given" and settings.teacher:
            for prompts in self.sets:
                prompts.check_sampling(settings.teacher_temperature)
        settings = self.settings = self._at_temperatures()
        self.local = None
        if settings.base or settings.teacher or any(source.kind != API for source in self.sources):
            from gadjax.evaluation.local_evaluation import (
                LocalEvaluation,
            )  # JAX, which an evaluation of API models does without

            self.local = LocalEvaluation(self.sources, self.sets, settings, watch)
            self.sources = self.local.sources

    def run(self) -> Evaluated:
        """Everything; what is in the folder's cache is not done again."""
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            asked, drawn, judged = (
                stack.enter_context(ResultCache(self.out / CACHE / f"{name}.jsonl"))
                for name in ("api", "local", "verdicts")
            )
            answers = self._answers(asked, drawn)
            (self.out / VERDICTS).unlink(missing_ok=True)  # an earlier evaluation's, which this one may do without
            for prompts in self.sets:
                folder = self.out / "answers" / prompts.name
                for name in (TEACHER, REFERENCE):  # the same
                    (folder / f"{name}.jsonl").unlink(missing_ok=True)
                for name, responses in answers[prompts.name].items():
                    rows = select(prompts, prompts.prompts) if name == TEACHER else prompts.prompts
                    write_answers(folder / f"{name}.jsonl", rows, responses)
            scores = self._text_scores(answers)
            if self.local:
                scores = self._local_scores(scores, answers, asked, drawn)
            references = self._reference_answers(asked) if self.judge else None
            judgements = self._judge(answers, references, judged) if references else None
        from gadjax.evaluation.report import write_report  # reads the files that are there by now

        unanswered = (references.unanswered | judgements.unanswered) if references else {}
        blank = references.blank if references else []
        results = self._results(scores, judgements, len(unanswered) + len(blank))
        write_results(self.out, results)
        write_table(self.out, results)
        write_report(self.out)
        return Evaluated(results, unanswered, blank)

    def _references(self) -> dict[str, list[str]]:
        """Reference answers from files, by set."""
        sets = {prompts.name: prompts for prompts in self.sets}
        if strange := self.settings.references.keys() - sets.keys():
            raise UserError(f"--references names the set {min(strange)!r}, which is not among --sets")
        return {name: read_references(path, sets[name]) for name, path in self.settings.references.items()}

    def _at_temperatures(self) -> EvaluationSettings:
        """The settings, with the temperatures that are used: the flags', else those of the sets' files."""
        used = {"two_sample_temperature": self.settings.base, "teacher_temperature": self.settings.teacher}
        of_sets = {prompts.name: prompts.sampling for prompts in self.sets}
        found: dict[str, float] = {}
        for name in (name for name, needed in used.items() if needed):
            flag, given = f"--{name}", getattr(self.settings, name)
            found[name] = common_temperature(of_sets, flag) if given is None else given
            for warning in other_temperatures(of_sets, found[name], flag):
                self.say(warning)
        if found.get("teacher_temperature") == 0:
            raise UserError(
                "--teacher_temperature is missing: the teacher's answers were collected greedily, at temperature 0, "
                "whose KL is infinite; give a temperature above 0, or leave --teacher out"
            )
        return dataclasses.replace(self.settings, **found)

    def _judge_settings(self) -> JudgeSettings | None:
        s = self.settings
        if not s.judge:
            return None
        own = {"base_url": s.judge_base_url, "limit_field": s.judge_limit_field, "fields": s.judge_request_fields}
        own = {name: value for name, value in own.items() if value is not None}
        flags = {f"--{name}": f"--judge_{name}" for name in ("limit_field", "request_fields")} | {"--model": "--judge"}
        if s.judge_base_url:
            flags["--base_url"] = "--judge_base_url"
        endpoint = dataclasses.replace(self.endpoint, **own, flags=flags)
        endpoint.client(s.judge, RequestSettings(0.0, 1.0, 1))
        of_reference = {"--model": "--reference_model"} if s.reference_model else {}
        return JudgeSettings(
            model=s.judge,
            endpoint=endpoint,
            reference_model=s.reference_model or s.judge,
            reference_endpoint=dataclasses.replace(endpoint, flags=flags | of_reference),
            temperature=s.judge_temperature,
            max_tokens=s.judge_max_tokens,
            reference_max_tokens=s.max_response_length,
            attempts=s.judge_attempts,
            seed=s.seed,
        )

    def _answers(self, asked: ResultCache, drawn: ResultCache) -> Answers:
        """Greedy answers of every model, and the teacher's own where a set has them."""
        answers: Answers = {prompts.name: {} for prompts in self.sets}
        for source in self.sources:
            found = self._ask(source, asked, 0.0) if source.kind == API else self.local.greedy(source.name, drawn)
            for name, responses in found.items():
                answers[name][source.name] = responses
        tokenizer = self.local.tokenizer if self.local else None
        for prompts in self.sets:
            if prompts.teacher:
                answers[prompts.name][TEACHER] = with_token_counts(select(prompts, prompts.teacher), tokenizer)
        return answers

    def _ask(self, source: ModelSource, cache: ResultCache, temperature: float) -> dict[str, list[Response]]:
        """An API model's answers to every set: greedy ones, or samples of those that the teacher has answered."""
        return ask_api(
            self.endpoint,
            source.name,
            source.where,
            {prompts.name: prompts.prompts for prompts in self.sets if prompts.teacher or not temperature},
            cache,
            temperature=temperature,
            limit=self.settings.max_response_length,
            seed=self.settings.seed if temperature else None,
            say=self.say,
            watch=self.watch,
        )

    def _text_scores(self, answers: Answers) -> dict[str, dict[str, schema.Scores]]:
        tokenizer = self.local.tokenizer if self.local else None
        scores = {}
        for prompts in self.sets:
            of_set = answers[prompts.name]
            lengths = {
                name: count_lengths(responses, tokenizer, own=self._counts(name)) for name, responses in of_set.items()
            }
            cut = {name: [response.cut for response in responses] for name, responses in of_set.items()}
            figures = length_figures(lengths, cut)
            teacher = [response.text for response in of_set.get(TEACHER, ())]
            scores[prompts.name] = {}
            self.watch(f"overlap, {prompts.name}", 0, len(of_set))
            for done, (name, responses) in enumerate(of_set.items(), start=1):
                own = [response.text for response in select(prompts, responses)] if name != TEACHER else []
                pairs = (own, teacher) if teacher and own else None
                scores[prompts.name][name] = text_scores([r.text for r in responses], figures[name], pairs)
                self.watch(f"overlap, {prompts.name}", done, len(of_set))
        return scores

    def _counts(self, name: str) -> bool:
        """Whether the tokens of a model's answers were counted by the tokenizer that counts all lengths."""
        return self.local is not None and (name == TEACHER or self.local.counts(name))

    def _local_scores(self, scores, answers: Answers, asked: ResultCache, drawn: ResultCache):
        """With the two-sample test and the KLs."""
        temperature = self.settings.two_sample_temperature
        sampled = answers
        if self.settings.base and temperature:
            sampled = {prompts.name: {} for prompts in self.sets}
            for source in self.sources:
                if source.kind == API:
                    found = self._ask(source, asked, temperature)
                else:
                    found = self.local.sampled(source.name, drawn, temperature)
                for name, responses in found.items():
                    sampled[name][source.name] = responses
        return self.local.add_scores(scores, sampled, drawn)

    def _reference_answers(self, cache: ResultCache) -> References:
        """Those of files, and the reference model's to the other sets."""
        prompts = {one.name: one.prompts for one in self.sets}
        wanted = {name: rows for name, rows in prompts.items() if name not in self.references}
        references = ask_references(self.judge, wanted, cache, say=self.say, watch=self.watch)
        for name, texts in self.references.items():
            references.found[name] = [Response(text, "stop", None) for text in texts]
        for name, found in references.found.items():
            rows = [prompt for prompt, one in zip(prompts[name], found, strict=True) if one]
            write_answers(self.out / "answers" / name / f"{REFERENCE}.jsonl", rows, [one for one in found if one])
        return references

    def _judge(self, answers: Answers, references: References, cache: ResultCache) -> Judgements:
        prompts = {one.name: one.prompts for one in self.sets}
        judged = {one.name: self._judged(one, answers[one.name]) for one in self.sets}
        found = judge_all(self.judge, prompts, references.found, judged, cache, say=self.say, watch=self.watch)
        write_verdicts(self.out / VERDICTS, found.judged)
        return found

    def _judged(self, prompts: PromptSet, answers: Mapping[str, list[Response]]) -> dict[str, list[Response | None]]:
        """What is judged of a set: an answer to each prompt, None where the teacher has none."""
        found: dict[str, list[Response | None]] = {n: list(r) for n, r in answers.items() if n != TEACHER}
        if self.settings.judge_teacher and TEACHER in answers:
            row: list[Response | None] = [None] * len(prompts.prompts)
            for place, response in zip(prompts.answered, answers[TEACHER], strict=True):
                row[place] = response
            found[TEACHER] = row
        return found

    def _results(
        self, scores: dict[str, dict[str, schema.Scores]], judgements: Judgements | None, unanswered: int
    ) -> Results:
        comparisons: dict[str, list[schema.Comparison]] = {}
        if judgements:
            for prompts in self.sets:
                of_set = scores[prompts.name]
                verdicts = {name: judgements.of(prompts.name, name) for name in of_set}
                for name, (found, malformed) in verdicts.items():
                    score = judge_score(list(found.values()), malformed, seed=self.settings.seed)
                    of_set[name] = dataclasses.replace(of_set[name], judge=score)
                comparisons[prompts.name] = [
                    _compared(a, b, verdicts[a][0], verdicts[b][0])
                    for a, b in itertools.combinations([name for name, (found, _) in verdicts.items() if found], 2)
                ]
        return Results(
            format=schema.FORMAT,
            gadjax=gadjax.__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            models=[self._model(source) for source in self.sources],
            sets=[
                schema.EvaluatedSet(one.name, one.path, len(one.prompts), one.sha256, bool(one.teacher))
                for one in self.sets
            ],
            settings=self._shown_settings() | {"unanswered": unanswered},
            judge=self._judge_facts(judgements) if judgements else None,
            scores=scores,
            comparisons=comparisons,
            verdicts=VERDICTS if judgements else None,
            run=self._run(),
        )

    def _model(self, source: ModelSource) -> schema.EvaluatedModel:
        stage = self.local.stage(source.name) if self.local else None
        return schema.EvaluatedModel(source.name, source.given, source.kind, source.step, stage)

    def _judge_facts(self, judgements: Judgements) -> schema.Judge:
        client = self.judge.endpoint.client(self.judge.model, RequestSettings(0.0, 1.0, 1))
        reference = self.judge.reference_model if len(self.references) < len(self.sets) else "given"
        return schema.Judge(self.judge.model, client.base_url, reference, judgements.malformed, judgements.retried)

    def _shown_settings(self) -> dict[str, Any]:
        """Without what is of the API's line, which may hold a login."""
        hidden = ("base_url", "judge_base_url", "judge", "reference_model", "concurrency", "requests_timeout")
        known = {name: value for name, value in dataclasses.asdict(self.settings).items() if value not in (None, {})}
        shown = {name: value for name, value in known.items() if name not in (*hidden, "max_retries")}
        unit = {"length_unit": TOKENS if self.local else WORDS}
        unit["length_tokenizer"] = self.local.counter.source.given if self.local else None
        return {"temperature": 0, **unit, **shown}

    def _run(self) -> schema.EvaluatedRun | None:
        """The first run that a model is a checkpoint or an export of."""
        found = (source.workdir for source in self.sources)
        workdir = next((workdir for workdir in found if workdir), None)
        return schema.EvaluatedRun(str(workdir)) if workdir else None


def _compared(a: str, b: str, of_a: Mapping[str, Any], of_b: Mapping[str, Any]) -> schema.Comparison:
    """On the prompts for which both have a verdict."""
    both: Sequence[str] = [name for name in of_a if name in of_b]
    return compare(a, b, [of_a[name].share for name in both], [of_b[name].share for name in both])


def evaluate(
    models: Mapping[str, str],
    sets: Mapping[str, str],
    out: Any,
    settings: EvaluationSettings,
    *,
    say: Say,
    watch: ProgressCallback,
) -> Evaluated:
    """See `gadjax.evaluate.run`."""
    return Evaluation(models, sets, expand(out), settings, say=say, watch=watch).run()
