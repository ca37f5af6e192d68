"""The part of an evaluation that needs models of this machine: greedy and sampled answers, two-sample test, KLs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gadjax.data.tokenizer import ChatTokenizer
from gadjax.errors import UserError
from gadjax.evaluation import kl
from gadjax.evaluation.cached_model import CachedModel, ResponseTokens
from gadjax.evaluation.local_models import LocalModel, inspect, same_vocabulary
from gadjax.evaluation.model_sources import API, EXPORT, ModelSource, parse_source
from gadjax.evaluation.prompt_sets import PromptSet
from gadjax.evaluation.responses import Response, from_draws, select
from gadjax.evaluation.result_cache import ResultCache
from gadjax.evaluation.results import TEACHER, Kl, Scores, TwoSampleScore
from gadjax.evaluation.settings import EvaluationSettings
from gadjax.evaluation.two_sample_text import TextTwoSampleTest, TwoSampleSettings
from gadjax.progress import ProgressCallback

_STUDENT_TEMPERATURE = 1.0  # of q, whatever the teacher's temperature (`docs/algorithm.md`, section 6)


class LocalEvaluation:
    """Models of this machine: checked at once, loaded one at a time.

    Attributes:
      sources: of all models, steps of checkpoints filled in.
      counter: the model whose tokenizer counts lengths: the base, else the first model, else the teacher.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        sets: Sequence[PromptSet],
        settings: EvaluationSettings,
        watch: ProgressCallback,
    ):
        """Checks models and prompts; no weights are read.

        Raises:
          UserError: a model cannot be used, or has no room for a prompt and its answer.
        """
        self.sets, self.settings, self.watch = sets, settings, watch
        self.models = {s.name: inspect(s, dtype=settings.dtype) for s in sources if s.kind != API}
        self.sources = [self.models[s.name].source if s.name in self.models else s for s in sources]
        self.base = self._other(settings.base, "--base")
        self.open_teacher = self._other(settings.teacher, "--teacher")
        self.counter = next(m for m in (self.base, *self.models.values(), self.open_teacher) if m)
        for local in (*self.models.values(), self.open_teacher):
            if local:
                self._check_room(local)
        if self.open_teacher:
            if not self.models:
                raise UserError("--teacher is for KLs, but all of --models are behind an API: leave it out")
            for local in self.models.values():
                kl.check_tokenizers(local, self.open_teacher)
        if self.base:
            tester = self._tester(cache=None)
            for prompts in self._with_teacher:
                tester.check(prompts.name, [prompt.content for prompt in select(prompts, prompts.prompts)])

    @property
    def tokenizer(self) -> ChatTokenizer:
        """That counts lengths."""
        return self.counter.tokenizer

    def counts(self, name: str) -> bool:
        """Whether a model's own tokens are those of `tokenizer`."""
        return name in self.models and same_vocabulary(self.models[name], self.counter)

    def stage(self, name: str) -> str | None:
        """Of the run, where the model is a checkpoint."""
        return self.models[name].stage if name in self.models else None

    def greedy(self, name: str, cache: ResultCache) -> dict[str, list[Response]]:
        """A model's greedy answers to every set; while its weights are there, all else that it is asked for later."""
        teacher_draws = self._teacher_draws(cache) if self.open_teacher else {}  # loads another network
        answerer = self._answerer(self.models[name], cache)
        found = self._draw(answerer, 0.0, "answers", self.sets)
        if self.base and self.settings.two_sample_temperature:
            self._draw(answerer, self.settings.two_sample_temperature, "samples", self._with_teacher)
        if self.open_teacher:
            self._student_side(answerer, teacher_draws)
        answerer.close()
        return found

    def sampled(self, name: str, cache: ResultCache, temperature: float) -> dict[str, list[Response]]:
        """A model's answers to every set that the teacher has answered, one draw each."""
        answerer = self._answerer(self.models[name], cache)
        found = self._draw(answerer, temperature, "samples", self._with_teacher)
        answerer.close()
        return found

    def add_scores(
        self,
        scores: Mapping[str, Mapping[str, Scores]],
        sampled: Mapping[str, Mapping[str, Sequence[Response]]],
        cache: ResultCache,
    ) -> dict[str, dict[str, Scores]]:
        """The scores with the two-sample test, where there is a base, and the KLs, where there is an open teacher.

        Args:
          scores: by set and model.
          sampled: answers to test, by set and model.
          cache: of draws and figures.
        """
        tests = self._two_sample(sampled, cache) if self.base else {}
        divergences = self._kl(cache) if self.open_teacher else {}
        return {
            place: {
                name: dataclasses.replace(one, two_sample=tests.get((place, name)), kl=divergences.get((place, name)))
                for name, one in of_set.items()
            }
            for place, of_set in scores.items()
        }

    @property
    def _with_teacher(self) -> list[PromptSet]:
        return [prompts for prompts in self.sets if prompts.teacher]

    def _other(self, given: str | None, flag: str) -> LocalModel | None:
        """A model beside those compared."""
        if not given:
            return None
        source = parse_source(flag.strip("-") if flag != "--teacher" else "open-teacher", given, flag)
        if source.kind == API or (flag == "--base" and source.kind != EXPORT):
            raise UserError(f"{flag}={given}: expected a Hugging Face directory or hub id, such as a run's export")
        return inspect(source, dtype=self.settings.dtype)

    def _check_room(self, local: LocalModel) -> None:
        for prompts in self.sets:
            ids = local.tokenizer.prompt_ids_batch([prompt.content for prompt in prompts.prompts])
            longest = max(map(len, ids)) + self.settings.max_response_length
            remedy = "lower --max_response_length, or leave long prompts out"
            local.config.check_length(longest, f"{local.source.given}, set {prompts.name}", remedy)

    def _tester(self, cache: ResultCache | None) -> TextTwoSampleTest:
        s = self.settings
        settings = TwoSampleSettings(
            s.two_sample_folds, s.two_sample_epochs, s.two_sample_learning_rate, s.two_sample_temperature
        )
        return TextTwoSampleTest(self.base, cache, settings, limit=s.max_response_length, seed=s.seed)

    def _answerer(self, local: LocalModel, cache: ResultCache) -> CachedModel:
        return CachedModel(local, cache, batch_size=self.settings.batch_size, seed=self.settings.seed)

    def _draw(
        self, answerer: CachedModel, temperature: float, what: str, sets: Sequence[PromptSet]
    ) -> dict[str, list[Response]]:
        found = {}
        for prompts in sets:
            ids = answerer.prompts([prompt.content for prompt in prompts.prompts])
            done = self._done(f"{answerer.local.source.name} {what}, {prompts.name}", len(ids))
            draws = answerer.draw(ids, self.settings.max_response_length, temperature, done=done)
            found[prompts.name] = from_draws(answerer.local, draws)
        return found

    def _two_sample(self, sampled, cache: ResultCache) -> dict[tuple[str, str], TwoSampleScore]:
        tester = self._tester(cache)
        found = {}
        total = sum(len(sampled[prompts.name].keys() - {TEACHER}) for prompts in self._with_teacher)
        self.watch("two-sample tests", 0, total)
        for prompts in self._with_teacher:
            chats = [prompt.content for prompt in select(prompts, prompts.prompts)]
            teacher = select(prompts, prompts.teacher)
            for name, responses in sampled[prompts.name].items():
                if name == TEACHER:
                    continue
                student = [response.as_answer() for response in select(prompts, responses)]
                found[prompts.name, name] = tester.test(chats, teacher, student)
                self.watch("two-sample tests", len(found), total)
        tester.close()
        return found

    def _kl(self, cache: ResultCache) -> dict[tuple[str, str], Kl]:
        """Of every set and model. One network is loaded at a time; what it finds is in the cache for the next."""
        s, teacher = self.settings, self._answerer(self.open_teacher, cache)
        theirs_by_set = self._teacher_draws(cache)
        found: dict[tuple[str, str], Kl] = {}
        total = len(self.sets) * len(self.models)
        sides = {
            name: self._student_side(self._answerer(local, cache), theirs_by_set) for name, local in self.models.items()
        }
        self.watch("KL", 0, total)
        for prompts in self.sets:
            asked = teacher.prompts([prompt.content for prompt in prompts.prompts])
            for name, local in self.models.items():
                own, q_own, q_theirs = sides[name][prompts.name]
                theirs = theirs_by_set[prompts.name, self._ends(local)]
                p_own = kl.likelihoods(teacher, asked, own, s.teacher_temperature)
                p_theirs = kl.likelihoods(teacher, self._forward(prompts, asked), theirs, s.teacher_temperature)
                found[prompts.name, name] = kl.as_result(
                    kl.divergence(q_own, p_own, own.lengths(), seed=s.seed),
                    kl.divergence(p_theirs, q_theirs, theirs.lengths(), seed=s.seed),
                    samples=s.kl_samples,
                    forward_on=s.kl_forward,
                    teacher=self.open_teacher.source.given,
                    temperature=s.teacher_temperature,
                )
                self.watch("KL", len(found), total)
        teacher.close()
        return found

    def _teacher_draws(self, cache: ResultCache) -> dict[tuple[str, tuple[int, ...]], kl.Drawn]:
        """The responses of the forward KL, by set and the ids that end a response."""
        s, teacher = self.settings, self._answerer(self.open_teacher, cache)
        found = {}
        for prompts, eos_ids in itertools.product(self.sets, sorted(set(map(self._ends, self.models.values())))):
            if s.kl_forward == kl.GIVEN:
                found[prompts.name, eos_ids] = self._given(prompts)
                continue
            ids = teacher.prompts([prompt.content for prompt in prompts.prompts])
            done = self._done(f"teacher samples, {prompts.name}", s.kl_samples * len(ids))
            found[prompts.name, eos_ids] = kl.draw_responses(
                teacher, ids, s.max_response_length, s.teacher_temperature, s.kl_samples, eos_ids, done
            )
        teacher.close()
        return found

    def _student_side(
        self, student: CachedModel, teacher_draws: Mapping[tuple[str, tuple[int, ...]], kl.Drawn]
    ) -> dict[str, tuple[kl.Drawn, np.ndarray, np.ndarray]]:
        """A model's draws, and how likely it holds them and the teacher's, by set."""
        s, ends = self.settings, self._ends(student.local)
        found = {}
        for prompts in self.sets:
            ids = student.prompts([prompt.content for prompt in prompts.prompts])
            done = self._done(
                f"{student.local.source.name} samples for the KL, {prompts.name}", s.kl_samples * len(ids)
            )
            own = kl.draw_responses(student, ids, s.max_response_length, _STUDENT_TEMPERATURE, s.kl_samples, ends, done)
            found[prompts.name] = (
                own,
                kl.likelihoods(student, ids, own, _STUDENT_TEMPERATURE),
                kl.likelihoods(
                    student, self._forward(prompts, ids), teacher_draws[prompts.name, ends], _STUDENT_TEMPERATURE
                ),
            )
        return found

    def _ends(self, local: LocalModel) -> tuple[int, ...]:
        return kl.shared_eos(local, self.open_teacher)

    def _forward(self, prompts: PromptSet, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The prompts that the forward KL is measured on."""
        return select(prompts, ids) if self.settings.kl_forward == kl.GIVEN else ids

    def _given(self, prompts: PromptSet) -> kl.Drawn:
        """The teacher's answers of a set, cut like the samples."""
        answers = select(prompts, prompts.teacher)
        tokenizer, limit = self.open_teacher.tokenizer, self.settings.max_response_length
        ids = tokenizer.response_ids_batch([a.text for a in answers], [a.ended for a in answers])
        return kl.Drawn([[ResponseTokens(tuple(row[:limit].tolist()), True) for row in ids]])

    def _done(self, what: str, total: int):
        return lambda count: self.watch(what, count, total)
