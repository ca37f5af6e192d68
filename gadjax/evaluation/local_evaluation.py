"""The part of an evaluation that needs models on this machine: greedy and sampled answers, two-sample test, KLs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gadjax.data.tokenizer import ChatTokenizer
from gadjax.errors import UserError
from gadjax.evaluation import best_of, kl, scoring
from gadjax.evaluation.best_of import BestOfModel
from gadjax.evaluation.cached_model import CachedModel, Done, ResponseTokens
from gadjax.evaluation.local_models import LocalModel, inspect, same_vocabulary
from gadjax.evaluation.model_sources import API, EXPORT, ModelSource, parse_source
from gadjax.evaluation.prompt_sets import PromptSet, Response
from gadjax.evaluation.responses import select
from gadjax.evaluation.result_cache import ResultCache
from gadjax.evaluation.results import TEACHER, Kl, Scores, TwoSampleScore
from gadjax.evaluation.settings import GIVEN, EvaluationSettings
from gadjax.evaluation.two_sample_text import TextTwoSampleTest
from gadjax.progress import ProgressCallback

_STUDENT_TEMPERATURE = 1.0  # of q, whatever the teacher's temperature (`docs/algorithm.md`, section 6)


class LocalEvaluation:
    """The models on this machine, which are all checked at once and loaded one at a time.

    Attributes:
      sources: of all models, with the steps of checkpoints and the kinds of discriminators filled in.
      counter: the model whose tokenizer counts lengths: the base, else the first model, else the teacher.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        sets: Sequence[PromptSet],
        settings: EvaluationSettings,
        watch: ProgressCallback,
    ):
        """Checks models and prompts; reads no weights.

        Raises:
          UserError: a model cannot be used, or has no room for a prompt and its answer.
        """
        self.sets, self.settings, self.watch = sets, settings, watch
        if settings.teacher and (chosen := next((s for s in sources if s.best_of), None)):
            raise UserError(
                f"--teacher is for KLs, but the best of several draws has no likelihoods: leave --teacher out, or "
                f"{chosen.name} ({chosen.given})"
            )
        self.models = {s.name: inspect(s, dtype=settings.dtype) for s in sources if s.kind != API}
        self.discriminators = {
            name: best_of.inspect_for(local, sets, dtype=settings.dtype)
            for name, local in self.models.items()
            if local.source.best_of
        }
        self.sources = [self._source(s) for s in sources]
        self.base = self._other(settings.base, "--base")
        self.open_teacher = self._other(settings.teacher, "--teacher")
        self.counter = next(m for m in (self.base, *self.models.values(), self.open_teacher) if m)
        for local in filter(None, (*self.models.values(), *self.discriminators.values(), self.open_teacher)):
            self._check_room(local)
        if self.open_teacher:
            if not self.models:
                raise UserError("--teacher is for KLs, but all of --models are behind an API: leave it out")
            for local in self.models.values():
                kl.check_tokenizers(local, self.open_teacher)
        if self.base:
            tester = TextTwoSampleTest(self.base, None, settings)
            for prompts in self._with_teacher:
                tester.check(prompts.name, select(prompts, prompts.chats))

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer that counts lengths."""
        return self.counter.tokenizer

    def counts(self, name: str) -> bool:
        """Whether a model has the vocabulary of `tokenizer`, so that its own tokens count."""
        return name in self.models and same_vocabulary(self.models[name], self.counter)

    def stage(self, name: str) -> str | None:
        """The stage of a run that the model is a checkpoint of; None for other models."""
        return self.models[name].stage if name in self.models else None

    def greedy(self, name: str, cache: ResultCache) -> dict[str, list[Response]]:
        """A model's greedy answers by set. While its weights are loaded, all else that it is asked for is cached.

        A model with a discriminator gives the best of its draws instead.
        """
        teacher_draws = self._teacher_draws(cache) if self.open_teacher else {}  # first: it loads another network
        model = self._model(name, cache)
        asked = [(0.0, "answers", self.sets)]
        if self.base and self.settings.two_sample_temperature:
            asked.append((self.settings.two_sample_temperature, "samples", self._with_teacher))
        if isinstance(model, BestOfModel):
            for temperature, what, sets in asked:
                self._prepare(model, temperature, what, sets)
            model.generator.close()  # the discriminator is loaded next
        found, *_ = [self._draw(model, *one) for one in asked]
        if self.open_teacher and isinstance(model, CachedModel):
            self._student_side(model, teacher_draws)
        model.close()
        return found

    def sampled(self, name: str, cache: ResultCache, temperature: float) -> dict[str, list[Response]]:
        """A model's answers, one draw each, to the sets that the teacher answered."""
        model = self._model(name, cache)
        found = self._draw(model, temperature, "samples", self._with_teacher)
        model.close()
        return found

    def add_scores(
        self,
        scores: Mapping[str, Mapping[str, Scores]],
        sampled: Mapping[str, Mapping[str, Sequence[Response]]],
        cache: ResultCache,
    ) -> dict[str, dict[str, Scores]]:
        """The scores with the two-sample test, if there is a base, and the KLs, if there is an open teacher.

        Args:
          scores: by set and model.
          sampled: the answers that are tested, by set and model.
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
        """The base or the open teacher; None if the flag is not given."""
        if not given:
            return None
        source = parse_source("base" if flag == "--base" else "open-teacher", given, flag)
        if source.kind == API or source.best_of or (flag == "--base" and source.kind != EXPORT):
            raise UserError(f"{flag}={given}: expected a Hugging Face directory or hub id, such as a run's export")
        return inspect(source, dtype=self.settings.dtype)

    def _check_room(self, local: LocalModel) -> None:
        for prompts in self.sets:
            longest = max(map(len, local.tokenizer.prompt_ids_batch(prompts.chats)))
            remedy = "lower --max_response_length, or leave long prompts out"
            what = f"{local.source.given}, set {prompts.name}"
            local.config.check_length(longest + self.settings.max_response_length, what, remedy)

    def _cached(self, local: LocalModel, cache: ResultCache) -> CachedModel:
        return CachedModel(local, cache, batch_size=self.settings.batch_size, seed=self.settings.seed)

    def _model(self, name: str, cache: ResultCache) -> CachedModel | BestOfModel:
        """What answers under a model's name."""
        model = self._cached(self.models[name], cache)
        if (how := model.local.source.best_of) is None:
            return model
        return BestOfModel(model, self._cached(self.discriminators[name], cache), how.samples, how.temperature)

    def _source(self, source: ModelSource) -> ModelSource:
        """The source with what is known of its files."""
        source = self.models[source.name].source if source.name in self.models else source
        if source.best_of is None:
            return source
        kind = scoring.KINDS[self.discriminators[source.name].head]
        return dataclasses.replace(source, best_of=dataclasses.replace(source.best_of, kind=kind))

    def _prepare(self, model: BestOfModel, temperature: float, what: str, sets: Sequence[PromptSet]) -> None:
        """Draws all answers among which the best are chosen."""
        for prompts in sets:
            ids = model.prompts(prompts.chats)
            title = f"{model.local.source.name} draws for {what}, {prompts.name}"
            done = self._done(title, model.samples * len(ids))
            model.prepare(ids, self.settings.max_response_length, temperature, done=done)

    def _draw(
        self, model: CachedModel | BestOfModel, temperature: float, what: str, sets: Sequence[PromptSet]
    ) -> dict[str, list[Response]]:
        found = {}
        for prompts in sets:
            ids = model.prompts(prompts.chats)
            done = self._done(f"{model.local.source.name} {what}, {prompts.name}", len(ids))
            draws = model.draw(ids, self.settings.max_response_length, temperature, done=done)
            texts = (model.local.tokenizer.decode(draw.tokens) for draw in draws)
            found[prompts.name] = [
                Response(text, "stop" if draw.ended else "length", len(draw.tokens))
                for text, draw in zip(texts, draws, strict=True)
            ]
        return found

    def _two_sample(self, sampled, cache: ResultCache) -> dict[tuple[str, str], TwoSampleScore]:
        """The two-sample tests by set and model."""
        tester = TextTwoSampleTest(self.base, cache, self.settings)
        found = {}
        total = sum(len(sampled[prompts.name].keys() - {TEACHER}) for prompts in self._with_teacher)
        self.watch("two-sample tests", 0, total)
        for prompts in self._with_teacher:
            chats, teacher = select(prompts, prompts.chats), select(prompts, prompts.teacher)
            for name, responses in sampled[prompts.name].items():
                if name != TEACHER:
                    found[prompts.name, name] = tester.test(chats, teacher, select(prompts, responses))
                    self.watch("two-sample tests", len(found), total)
        tester.close()
        return found

    def _kl(self, cache: ResultCache) -> dict[tuple[str, str], Kl]:
        """The KLs by set and model. One network is loaded at a time; the cache holds its part for the next."""
        s, found = self.settings, {}
        theirs_by_set = self._teacher_draws(cache)
        sides = {
            name: self._student_side(self._cached(local, cache), theirs_by_set) for name, local in self.models.items()
        }
        teacher, total = self._cached(self.open_teacher, cache), len(self.sets) * len(self.models)
        self.watch("KL", 0, total)
        for prompts in self.sets:
            asked = teacher.prompts(prompts.chats)
            for name, local in self.models.items():
                # The student's likelihoods of both sides' responses are known; the teacher's are computed here.
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
        """The responses of the forward KL, by set and by the ids that end a response."""
        s, teacher = self.settings, self._cached(self.open_teacher, cache)
        found = {}
        for prompts, eos_ids in itertools.product(self.sets, sorted(set(map(self._ends, self.models.values())))):
            if s.kl_forward == GIVEN:
                found[prompts.name, eos_ids] = self._given(prompts)
                continue
            ids = teacher.prompts(prompts.chats)
            done = self._done(f"teacher samples, {prompts.name}", s.kl_samples * len(ids))
            found[prompts.name, eos_ids] = kl.draw_responses(
                teacher, ids, s.max_response_length, s.teacher_temperature, s.kl_samples, eos_ids, done
            )
        teacher.close()
        return found

    def _student_side(
        self, student: CachedModel, teacher_draws: Mapping[tuple[str, tuple[int, ...]], kl.Drawn]
    ) -> dict[str, tuple[kl.Drawn, np.ndarray, np.ndarray]]:
        """By set: a model's draws, and its log-likelihoods of them and of the teacher's draws."""
        s, ends, at = self.settings, self._ends(student.local), _STUDENT_TEMPERATURE
        found = {}
        for prompts in self.sets:
            ids = student.prompts(prompts.chats)
            what = f"{student.local.source.name} samples for the KL, {prompts.name}"
            done = self._done(what, s.kl_samples * len(ids))
            own = kl.draw_responses(student, ids, s.max_response_length, at, s.kl_samples, ends, done)
            theirs, asked = teacher_draws[prompts.name, ends], self._forward(prompts, ids)
            found[prompts.name] = (
                own,
                kl.likelihoods(student, ids, own, at),
                kl.likelihoods(student, asked, theirs, at),
            )
        return found

    def _ends(self, local: LocalModel) -> tuple[int, ...]:
        return kl.shared_eos(local, self.open_teacher)

    def _forward(self, prompts: PromptSet, ids: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The prompts that the forward KL is measured on."""
        return select(prompts, ids) if self.settings.kl_forward == GIVEN else ids

    def _given(self, prompts: PromptSet) -> kl.Drawn:
        """The teacher's answers of a set, cut at the same length as samples."""
        answers = select(prompts, prompts.teacher)
        tokenizer, limit = self.open_teacher.tokenizer, self.settings.max_response_length
        ids = tokenizer.response_ids_batch([a.text for a in answers], [not a.cut for a in answers])
        return kl.Drawn([[ResponseTokens(tuple(row[:limit].tolist()), True) for row in ids]])

    def _done(self, what: str, total: int) -> Done:
        return lambda count: self.watch(what, count, total)
