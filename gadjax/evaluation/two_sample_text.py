"""The two-sample test of answers as text: every model against the teacher, on one base checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from gadjax.data.pipeline import same_prompt
from gadjax.data.schema import Messages
from gadjax.errors import UserError
from gadjax.evaluation.local_models import LocalModel
from gadjax.evaluation.prompt_sets import TeacherAnswer
from gadjax.evaluation.result_cache import ResultCache, digest
from gadjax.evaluation.results import TwoSampleScore
from gadjax.evaluation.two_sample import Classifier, adamw_for, two_sample_test
from gadjax.models.model import Model, Params
from gadjax.setup.blueprint import state_shardings


@dataclasses.dataclass(frozen=True)
class TwoSampleSettings:
    """Of the fresh classifiers.

    Attributes:
      folds: of the prompts; at least 2.
      epochs: passes over a fold's training answers.
      learning_rate: of AdamW.
      temperature: that the models' answers are drawn at; 0 tests the greedy ones.
    """

    folds: int = 5
    epochs: int = 3
    learning_rate: float = 1e-5
    temperature: float = 1.0


class TextTwoSampleTest:
    """The base checkpoint that fresh classifiers grow from. Its weights are loaded at the first test that is new.

    Both sides are text encoded anew by the base's tokenizer, so that models with other tokenizers and those behind an
    API are tested alike, and cut at the same number of its tokens.
    """

    def __init__(self, base: LocalModel, cache: ResultCache, settings: TwoSampleSettings, *, limit: int, seed: int):
        """`limit`: tokens of an answer at most; `seed`: of folds, order, heads and bootstrap."""
        self.base, self.cache, self.settings, self.limit, self.seed = base, cache, settings, limit, seed
        self._grown: tuple[Classifier, Params] | None = None

    def check(self, name: str, chats: Sequence[Messages]) -> None:
        """Refuses a set that cannot be tested; `chats`: its prompts that the teacher has answered.

        Raises:
          UserError: there are fewer than folds, or the base has no room for one and its answer.
        """
        prompts = self.base.tokenizer.prompt_ids_batch(chats)
        if (different := len(same_prompt(prompts))) < self.settings.folds:
            raise UserError(
                f"--two_sample_folds={self.settings.folds} is more than the {different} prompts of the set {name} "
                "that differ and have a teacher's answer: lower it, or leave --base out"
            )
        longest = max(map(len, prompts)) + self.limit
        remedy = "lower --max_response_length, or leave long prompts out"
        self.base.config.check_length(longest, f"--base={self.base.source.given}, set {name}", remedy)

    def test(
        self, chats: Sequence[Messages], teacher: Sequence[TeacherAnswer], student: Sequence[TeacherAnswer]
    ) -> TwoSampleScore:
        """The cross-validated accuracy of fresh classifiers, folds split by prompt.

        Args:
          chats: prompts.
          teacher, student: an answer to each.
        """
        prompts = self.base.tokenizer.prompt_ids_batch(chats)
        sides = [self._ids(answers) for answers in (teacher, student)]
        settings = dataclasses.asdict(self.settings)
        ids = [[row.tolist() for row in rows] for rows in (prompts, *sides)]
        # Where prompts repeat, earlier versions let a fold's classifier see them.
        name = "two-sample" if len(same_prompt(prompts)) == len(prompts) else "two-sample, prompts apart"
        key = digest(name, self.base.identity, settings, self.seed, ids)
        if key not in self.cache:
            classifier, params = self._grow()
            found = two_sample_test(
                classifier,
                params,
                prompts,
                *sides,
                folds=self.settings.folds,
                epochs=self.settings.epochs,
                seed=self.seed,
            )
            self.cache.add({key: dataclasses.asdict(found)})
        return TwoSampleScore(**self.cache[key])

    def close(self) -> None:
        """Lets the weights go."""
        self._grown = None

    def _ids(self, answers: Sequence[TeacherAnswer]) -> list[np.ndarray]:
        """Cut at the limit; an answer of no tokens at all still has an end to be scored at."""
        tokenizer = self.base.tokenizer
        found = tokenizer.response_ids_batch([a.text for a in answers], [a.ended for a in answers])
        end = np.array([tokenizer.turn_end_id], np.int32)
        return [ids[: self.limit] if len(ids) else end for ids in found]

    def _grow(self) -> tuple[Classifier, Params]:
        if self._grown is None:
            loaded = self.base.load(training=True)
            remat = "none" if jax.default_backend() == "cpu" else "full"
            model = Model(dataclasses.replace(loaded.model.config, remat=remat), "score", loaded.mesh)
            optimizer = adamw_for(self.settings.learning_rate)
            classifier = Classifier(model, optimizer, state_shardings(model, optimizer, loaded.mesh))
            self._grown = classifier, loaded.params
        return self._grown
