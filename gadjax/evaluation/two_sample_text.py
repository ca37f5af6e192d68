"""The two-sample test of answers as text: every model against the teacher, with classifiers of one base checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gadjax.data.chats import Messages
from gadjax.distill.state import state_shardings
from gadjax.errors import UserError
from gadjax.evaluation.local_models import LocalModel
from gadjax.evaluation.prompt_sets import Response
from gadjax.evaluation.result_cache import ResultCache, digest
from gadjax.evaluation.results import TwoSampleScore
from gadjax.evaluation.settings import EvaluationSettings
from gadjax.evaluation.two_sample import Classifier, adamw_for, same_prompt, two_sample_test
from gadjax.models.model import Model, Params


class TextTwoSampleTest:
    """Two-sample tests on a base checkpoint, whose weights are loaded for the first test that is not in the cache.

    The base's tokenizer encodes the text of both sides, so that models with other tokenizers and models behind an API
    are tested alike. Both sides are cut at the same number of its tokens.
    """

    def __init__(self, base: LocalModel, cache: ResultCache | None, settings: EvaluationSettings):
        """`cache` may be None for `check` alone."""
        self.base, self.cache, self.settings = base, cache, settings
        self._started: tuple[Classifier, Params] | None = None

    def check(self, name: str, chats: Sequence[Messages]) -> None:
        """Refuses a set that cannot be tested; `chats` are its prompts that the teacher answered.

        Raises:
          UserError: there are fewer prompts than folds, or the base has no room for a prompt and its answer.
        """
        prompts, folds = self.base.tokenizer.prompt_ids_batch(chats), self.settings.two_sample_folds
        if (different := len(same_prompt(prompts))) < folds:
            raise UserError(
                f"--two_sample_folds={folds} is more than the {different} prompts of the set {name} "
                "that differ and have a teacher's answer: lower it, or leave --base out"
            )
        longest = max(map(len, prompts)) + self.settings.max_response_length
        remedy = "lower --max_response_length, or leave long prompts out"
        self.base.config.check_length(longest, f"--base={self.base.source.given}, set {name}", remedy)

    def test(
        self, chats: Sequence[Messages], teacher: Sequence[Response], student: Sequence[Response]
    ) -> TwoSampleScore:
        """The cross-validated accuracy of fresh classifiers on the answers to `chats`."""
        s, prompts = self.settings, self.base.tokenizer.prompt_ids_batch(chats)
        sides = [self._ids(answers) for answers in (teacher, student)]
        ids = [[row.tolist() for row in rows] for rows in (prompts, *sides)]
        # Earlier versions let a fold's classifier see repeated prompts: their figures have another key.
        name = "two-sample" if len(same_prompt(prompts)) == len(prompts) else "two-sample, prompts apart"
        options: Any = {"folds": s.two_sample_folds, "epochs": s.two_sample_epochs}
        named = {"learning_rate": s.two_sample_learning_rate, "temperature": s.two_sample_temperature}
        key = digest(name, self.base.identity, options | named, s.seed, ids)
        if key not in self.cache:
            found = two_sample_test(*self._start(), prompts, *sides, **options, seed=s.seed)
            self.cache.add({key: dataclasses.asdict(found)})
        return TwoSampleScore(**self.cache[key])

    def close(self) -> None:
        """Frees the weights."""
        self._started = None

    def _ids(self, answers: Sequence[Response]) -> list[np.ndarray]:
        """The answers' token ids, cut at the limit; an answer without tokens gets an end, where it is scored."""
        tokenizer = self.base.tokenizer
        found = tokenizer.response_ids_batch([a.text for a in answers], [not a.cut for a in answers])
        end = np.array([tokenizer.turn_end_id], np.int32)
        return [ids[: self.settings.max_response_length] if len(ids) else end for ids in found]

    def _start(self) -> tuple[Classifier, Params]:
        """The compiled classifier and the base's parameters."""
        if self._started is None:
            loaded = self.base.load(training=True)
            remat = "none" if jax.default_backend() == "cpu" else "full"
            model = Model(dataclasses.replace(loaded.model.config, remat=remat), "score", loaded.mesh)
            optimizer = adamw_for(self.settings.two_sample_learning_rate)
            classifier = Classifier(model, optimizer, state_shardings(model, optimizer, loaded.mesh))
            self._started = classifier, loaded.params
        return self._started
