"""Progress of drawing; tests/evaluation/test_local_evaluation.py tests the draws."""

from __future__ import annotations

import types

import numpy as np

from gadjax.evaluation.cached_model import CachedModel
from gadjax.evaluation.result_cache import ResultCache
from gadjax.rollout.engine import Completion

LOCAL = types.SimpleNamespace(identity="m", eos_ids=(2,), tokenizer=types.SimpleNamespace(pad_id=0))


class Told(CachedModel):
    """A model whose engine answers at once and notes the progress until then."""

    network = types.SimpleNamespace(params=None)

    @property
    def _engine(self):
        return types.SimpleNamespace(generate=self._generate)

    def _generate(self, params, prompts, sampling, *, seed, numbers, done):
        self.before.append(list(self.told))
        done(len(prompts))
        return [Completion(np.array([5, 2]), np.zeros(2), True)] * len(prompts)


def test_progress_shows_before_the_first_draw_and_only_where_one_is_missing(tmp_path):
    prompts = [np.array([i], np.int32) for i in range(3)]
    with ResultCache(tmp_path / "j.jsonl") as cache:
        for asked, before, told in ((prompts[:1], [[0]], [0, 1]), (prompts, [[1]], [1, 3]), (prompts, [], [])):
            answerer = Told(LOCAL, cache)
            answerer.before, answerer.told = [], []
            draws = answerer.draw(asked, 4, 1.0, done=answerer.told.append)
            assert [draw.tokens for draw in draws] == [(5, 2)] * len(asked)
            assert (answerer.before, answerer.told) == (before, told)
