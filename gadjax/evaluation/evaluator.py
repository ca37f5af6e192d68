"""An evaluation from end to end: checks, answers, scores, the judge, files."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from gadjax.errors import UserError
from gadjax.evaluation import blind
from gadjax.evaluation import results as schema
from gadjax.evaluation.api import Endpoint, Say
from gadjax.evaluation.human import score_votes
from gadjax.evaluation.judge import judge_score
from gadjax.evaluation.model_sources import API, REFERENCE, ModelSource, parse_source
from gadjax.evaluation.prompt_sets import (
    Response,
    common_temperature,
    other_temperatures,
    read_references,
    read_set,
)
from gadjax.evaluation.responses import TOKENS, WORDS, ask_api, count_lengths, select, with_token_counts, write_answers
from gadjax.evaluation.result_cache import ResultCache
from gadjax.evaluation.results import TEACHER, Results, Scores, write_results
from gadjax.evaluation.settings import GIVEN, EvaluationSettings
from gadjax.evaluation.statistics import compare
from gadjax.evaluation.table import write_table
from gadjax.evaluation.text import length_figures, text_scores
from gadjax.evaluation.verdicts import JudgeEndpoints, Judgements, References, ask_references, judge_all, write_verdicts
from gadjax.evaluation.votes import read_votes, resolve
from gadjax.files import expand, writing
from gadjax.progress import ProgressCallback
from gadjax.teacher.protocol import RequestSettings
from gadjax.version import __version__

VERDICTS = "verdicts.jsonl"
CACHE = "cache"
# Settings that results.json leaves out: they say where an API is, which may hold a login, or do not change an answer.
_HIDDEN = {"base_url", "judge_base_url", "judge", "reference_model", "concurrency", "requests_timeout", "max_retries"}
_HIDDEN |= {"votes", "blind_pairs"}

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
    """One evaluation: `Evaluation(...)` checks all that can be known before a model is loaded, and `run` does it."""

    def __init__(
        self,
        models: Mapping[str, str],
        sets: Mapping[str, str],
        out: str | os.PathLike[str],
        settings: EvaluationSettings,
        *,
        say: Say,
        watch: ProgressCallback,
    ):
        """The arguments are those of `gadjax.evaluate.run`.

        Raises:
          UserError: something cannot work; the message is about the first such thing.
        """
        settings.check()
        if not models or not sets:
            raise UserError(f"--{'sets' if models else 'models'} is empty: name at least one")
        self.out, self.settings, self.say, self.watch = expand(out), settings, say, watch
        # Models, sets and reference answers.
        self.sources = [parse_source(name, given) for name, given in models.items()]
        self.sets = [read_set(name, path, max_prompts=settings.max_prompts) for name, path in sets.items()]
        self.references = self._given_references()
        self.names = [source.name for source in self.sources]
        self.files = read_votes(settings.votes)
        ids = {prompts.name: [prompt.id for prompt in prompts.prompts] for prompts in self.sets}
        self.votes = resolve(self.files, ids, self.names)
        # APIs: a client is made once, which checks URL, key and fields.
        s, flags = settings, {"--model": "--models"}
        self.endpoint = Endpoint(s.base_url, s.limit_field, s.request_fields, s, flags)
        for source in self.sources:
            if source.kind == API:
                self.endpoint.client(source.where, RequestSettings(0.0, 1.0, 1))
        self.judge = self._judge_endpoints() if settings.judge else None
        # What KLs and the two-sample test need.
        if settings.base and not any(prompts.teacher for prompts in self.sets):
            raise UserError("--base is of the two-sample test, but no set of --sets has the teacher's answers")
        if settings.kl_forward == GIVEN and settings.teacher:
            for prompts in self.sets:
                prompts.check_sampling(settings.teacher_temperature)
        settings = self.settings = self._with_temperatures()
        self.local = None
        if settings.base or settings.teacher or any(source.kind != API for source in self.sources):
            # Imports JAX, which an evaluation of API models does without.
            from gadjax.evaluation.local_evaluation import LocalEvaluation

            self.local = LocalEvaluation(self.sources, self.sets, settings, watch)
            self.sources = self.local.sources

    def run(self) -> Evaluated:
        """Runs the evaluation and writes its files; what is in the folder's cache is not done again."""
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            asked, drawn, judged = (
                stack.enter_context(ResultCache(self.out / CACHE / f"{name}.jsonl"))
                for name in ("api", "local", "verdicts")
            )
            answers = self._answers(asked, drawn)
            self._write_answers(answers)
            fingerprint = self._write_blind()
            scores = self._text_scores(answers)
            if self.local:
                scores = self._local_scores(scores, answers, asked, drawn)
            references = self._reference_answers(asked) if self.judge else None
            judgements = self._judge(answers, references, judged) if references else None
        from gadjax.evaluation.report import write_report  # reads the files that are there by now

        unanswered = (references.unanswered | judgements.unanswered) if references else {}
        blank = references.blank if references else []
        results = self._results(scores, judgements, len(unanswered) + len(blank), fingerprint)
        write_results(self.out, results)
        write_table(self.out, results)
        write_report(self.out)
        return Evaluated(results, unanswered, blank)

    def _given_references(self) -> dict[str, list[str]]:
        """The reference answers from files, by set."""
        sets = {prompts.name: prompts for prompts in self.sets}
        if strange := self.settings.references.keys() - sets.keys():
            raise UserError(f"--references names the set {min(strange)!r}, which is not among --sets")
        return {name: read_references(path, sets[name]) for name, path in self.settings.references.items()}

    def _with_temperatures(self) -> EvaluationSettings:
        """The settings with the temperatures that are used: the flags', else those of the sets' files."""
        used = {"two_sample_temperature": self.settings.base, "teacher_temperature": self.settings.teacher}
        of_sets = {prompts.name: prompts.sampling for prompts in self.sets}
        found: dict[str, Any] = {}
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

    def _judge_endpoints(self) -> JudgeEndpoints:
        """The judge's and the reference model's endpoints: as the models' one, but for the flags of their own."""
        s = self.settings
        own: Any = {"base_url": s.judge_base_url, "limit_field": s.judge_limit_field, "fields": s.judge_request_fields}
        own = {name: value for name, value in own.items() if value is not None}
        flags = {f"--{name}": f"--judge_{name}" for name in ("limit_field", "request_fields")} | {"--model": "--judge"}
        if s.judge_base_url:
            flags["--base_url"] = "--judge_base_url"
        judge = dataclasses.replace(self.endpoint, **own, flags=flags)
        judge.client(s.judge, RequestSettings(0.0, 1.0, 1))
        flags = flags | {"--model": "--reference_model" if s.reference_model else "--judge"}
        return JudgeEndpoints(s, judge, s.reference_model or s.judge, dataclasses.replace(judge, flags=flags))

    def _answers(self, asked: ResultCache, drawn: ResultCache) -> Answers:
        """The greedy answers of every model, and the teacher's own for sets that have them."""
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
        """An API model's answers by set: greedy ones, or samples for the sets that the teacher answered."""
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

    def _write_answers(self, answers: Answers) -> None:
        """Writes answers/SET/MODEL.jsonl, and removes files of an earlier evaluation that this one may not have."""
        (self.out / VERDICTS).unlink(missing_ok=True)
        for prompts in self.sets:
            folder = self.out / "answers" / prompts.name
            for name in (TEACHER, REFERENCE):
                (folder / f"{name}.jsonl").unlink(missing_ok=True)
            for name, responses in answers[prompts.name].items():
                rows = select(prompts, prompts.prompts) if name == TEACHER else prompts.prompts
                write_answers(folder / f"{name}.jsonl", rows, responses)

    def _write_blind(self) -> str:
        """Writes blind.html and returns the fingerprint of the answers; refuses votes on other answers."""
        sheets = blind.read_sheets(self.out, [prompts.name for prompts in self.sets], self.names)
        pairs = blind.pairs_to_ask(self.names, teacher=self.settings.judge_teacher)
        blind.write_blind(self.out, sheets, pairs, self.settings.blind_pairs)
        fingerprint = blind.fingerprint(sheets)
        for file in self.files:
            file.refuse_others(fingerprint)
        return fingerprint

    def _text_scores(self, answers: Answers) -> dict[str, dict[str, Scores]]:
        """The scores of text by set and model: lengths, distinct n-grams, overlap with the teacher."""
        tokenizer = self.local.tokenizer if self.local else None
        own = lambda name: self.local is not None and (name == TEACHER or self.local.counts(name))  # noqa: E731
        scores: dict[str, dict[str, schema.Scores]] = {}
        for prompts in self.sets:
            of_set = answers[prompts.name]
            lengths = {name: count_lengths(found, tokenizer, own=own(name)) for name, found in of_set.items()}
            figures = length_figures(lengths, {name: [one.cut for one in found] for name, found in of_set.items()})
            teacher = [response.text for response in of_set.get(TEACHER, ())]
            scores[prompts.name] = {}
            self.watch(f"overlap, {prompts.name}", 0, len(of_set))
            for done, (name, found) in enumerate(of_set.items(), start=1):
                texts = [response.text for response in found]
                pairs = (select(prompts, texts), teacher) if teacher and name != TEACHER else None
                scores[prompts.name][name] = text_scores(texts, figures[name], pairs)
                self.watch(f"overlap, {prompts.name}", done, len(of_set))
        return scores

    def _local_scores(self, scores, answers: Answers, asked: ResultCache, drawn: ResultCache):
        """The scores with the two-sample test and the KLs."""
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
        """The reference answers from files, and the reference model's to the other sets; writes them."""
        prompts = {one.name: one.prompts for one in self.sets}
        wanted = {name: rows for name, rows in prompts.items() if name not in self.references}
        references = ask_references(self.judge, wanted, cache, say=self.say, watch=self.watch)
        for name, texts in self.references.items():
            references.found[name] = [Response(text, "stop") for text in texts]
        for name, found in references.found.items():
            rows = [prompt for prompt, one in zip(prompts[name], found, strict=True) if one]
            write_answers(self.out / "answers" / name / f"{REFERENCE}.jsonl", rows, [one for one in found if one])
        return references

    def _judge(self, answers: Answers, references: References, cache: ResultCache) -> Judgements:
        """The verdicts on all answers; writes them."""
        judged: dict[str, dict[str, list[Response | None]]] = {}
        for prompts in self.sets:
            of_set = answers[prompts.name]
            judged[prompts.name] = {name: found for name, found in of_set.items() if name != TEACHER}
            if self.settings.judge_teacher and prompts.teacher:
                row: list[Response | None] = [None] * len(prompts.prompts)
                for place, response in zip(prompts.answered, of_set[TEACHER], strict=True):
                    row[place] = response
                judged[prompts.name][TEACHER] = row
        sets = {one.name: one.prompts for one in self.sets}
        found = judge_all(self.judge, sets, references.found, judged, cache, say=self.say, watch=self.watch)
        write_verdicts(self.out / VERDICTS, found.judged)
        return found

    def _results(
        self, scores: dict[str, dict[str, Scores]], judgements: Judgements | None, unanswered: int, fingerprint: str
    ) -> Results:
        comparisons: dict[str, list[schema.Comparison]] = {}
        shares: dict[tuple[str, str], dict[str, float]] = {}
        for prompts in self.sets if judgements else ():
            of_set = scores[prompts.name]
            verdicts = {name: judgements.of(prompts.name, name) for name in of_set}
            for name, (found, malformed) in verdicts.items():
                score = judge_score(list(found.values()), malformed, seed=self.settings.seed)
                of_set[name] = dataclasses.replace(of_set[name], judge=score)
                shares[prompts.name, name] = {key: verdict.share for key, verdict in found.items()}
            judged = [name for name, (found, _) in verdicts.items() if found]
            comparisons[prompts.name] = [
                _compared(a, b, shares[prompts.name, a], shares[prompts.name, b], self.settings.seed)
                for a, b in itertools.combinations(judged, 2)
            ]
        stage = self.local.stage if self.local else lambda name: None
        workdir = next((source.workdir for source in self.sources if source.workdir), None)
        return Results(
            format=schema.FORMAT,
            gadjax=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            models=[
                schema.EvaluatedModel(s.name, s.given, s.kind, s.step, stage(s.name), s.best_of) for s in self.sources
            ],
            sets=[
                schema.EvaluatedSet(one.name, one.path, len(one.prompts), one.sha256, bool(one.teacher))
                for one in self.sets
            ],
            settings=self._shown_settings() | {"unanswered": unanswered},
            judge=self._judge_facts(judgements) if judgements else None,
            scores=scores,
            comparisons=comparisons,
            verdicts=VERDICTS if judgements else None,
            run=schema.EvaluatedRun(str(workdir)) if workdir else None,
            votes=score_votes(self.votes, fingerprint, shares, seed=self.settings.seed) if self.votes else None,
        )

    def _judge_facts(self, judgements: Judgements) -> schema.Judge:
        model = self.settings.judge
        client = self.judge.judge.client(model, RequestSettings(0.0, 1.0, 1))
        reference = self.judge.reference_model if len(self.references) < len(self.sets) else "given"
        return schema.Judge(model, client.base_url, reference, judgements.malformed, judgements.retried)

    def _shown_settings(self) -> dict[str, Any]:
        """The settings that results.json holds, with the unit of lengths."""
        known = {name: value for name, value in dataclasses.asdict(self.settings).items() if value not in (None, {})}
        shown = {name: value for name, value in known.items() if name not in _HIDDEN}
        unit = {"length_unit": TOKENS if self.local else WORDS}
        unit["length_tokenizer"] = self.local.counter.source.given if self.local else None
        return {"temperature": 0, **unit, **shown}


def _compared(a: str, b: str, of_a: Mapping[str, float], of_b: Mapping[str, float], seed: int) -> schema.Comparison:
    """Compares two models on the prompts for which both have a verdict."""
    both = [name for name in of_a if name in of_b]
    return compare(a, b, [of_a[name] for name in both], [of_b[name] for name in both], seed=seed)
