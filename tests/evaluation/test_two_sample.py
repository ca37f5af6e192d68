"""The two-sample test tells different sides apart, and equal ones not."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from gadjax.evaluation.two_sample import Classifier, adamw_for, two_sample_test
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    tie_embeddings=True,
    initializer_range=0.3,
)
PROMPTS = 48


@pytest.fixture(scope="module")
def base(quick_compile):
    return jax.jit(Model(CONFIG).init)(jax.random.key(0))


def answers(rng: np.random.Generator, low: int = 0, high: int = 32) -> list[np.ndarray]:
    """An answer for each prompt, of two to seven tokens from a range of ids."""
    return [rng.integers(low, high, rng.integers(2, 8)).astype(np.int32) for _ in range(PROMPTS)]


def measure(base, teacher, student, learning_rate=3e-3, watch=lambda classifier: None, **settings):
    """Runs the test; `watch` may replace the classifier's programs."""
    rng = np.random.default_rng(9)
    prompts = [rng.integers(0, 32, rng.integers(1, 6)) for _ in range(PROMPTS)]
    prompts = [np.array([*divmod(i, 32), *ids], np.int32) for i, ids in enumerate(prompts)]  # all differ
    settings = {"folds": 3, "epochs": 4, "batch_size": 8} | settings
    classifier = Classifier(Model(CONFIG, "score"), adamw_for(learning_rate))
    watch(classifier)
    return two_sample_test(classifier, base, prompts, teacher, student, **settings)


def test_the_same_distribution(base):
    rng = np.random.default_rng(1)
    test = measure(base, answers(rng), answers(rng))
    assert test.low <= 0.5 <= test.high
    assert test.low <= test.accuracy <= test.high
    assert test.prompts == PROMPTS


def test_different_distributions(base):
    rng = np.random.default_rng(1)
    test = measure(base, answers(rng, high=4), answers(rng, low=28), learning_rate=1e-2)
    assert test.accuracy > 0.9
    assert test.low > 0.8


def test_deterministic(base):
    rng = np.random.default_rng(2)
    teacher, student = answers(rng, high=20), answers(rng, low=10)
    first, again, other = (measure(base, teacher, student, epochs=1, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_same_answers_cannot_be_told_apart(base):
    """Equal pairs get equal scores, so exactly one of each is called right: folds by prompt leak nothing."""
    same = answers(np.random.default_rng(3))
    test = measure(base, same, same, epochs=1)
    assert (test.accuracy, test.low, test.high) == (0.5, 0.5, 0.5)


def test_a_prompt_is_never_tried_by_its_own_classifier(base, monkeypatch):
    """Each prompt is tested once, by the classifier that was not trained on it."""
    from gadjax.evaluation import two_sample

    seen: list[set[int]] = []
    tried: list[list[int]] = []
    original = two_sample._rows

    def rows(arrays, lengths, chosen):
        calls.append(chosen.tolist())
        return original(arrays, lengths, chosen)

    def watch(classifier):
        start, update, score = classifier.start, classifier.update, classifier.score
        classifier.start = lambda *args: (seen.append(set()), tried.append([]), start(*args))[2]
        classifier.update = lambda *args: (seen[-1].update(calls[-1]), update(*args))[1]
        classifier.score = lambda *args: (tried[-1].extend(calls[-1]), score(*args))[1]

    calls: list[list[int]] = []
    monkeypatch.setattr(two_sample, "_rows", rows)
    same = answers(np.random.default_rng(3))
    measure(base, same, same, epochs=2, watch=watch)
    assert len(seen) == 3
    for trained, held in zip(seen, tried, strict=True):
        assert not trained & set(held)
    assert set.union(*map(set, tried)) == set(range(PROMPTS))


class Told:
    """A classifier without a model: it is right about given rows, and notes its inputs."""

    def __init__(self, monkeypatch, right):
        from gadjax.evaluation import two_sample

        monkeypatch.setattr(two_sample, "_rows", lambda arrays, lengths, chosen: chosen)
        self.right, self.trained, self.tried = right, [], []

    def frozen(self, base):
        return None

    def start(self, base, key):
        self.trained.append(set())
        self.tried.append(set())
        return types.SimpleNamespace(params=None)

    def update(self, state, frozen, rows):
        self.trained[-1].update(rows.tolist())
        return state

    def score(self, params, frozen, rows):
        self.tried[-1].update(rows.tolist())
        return np.where([[row in self.right] * 2 for row in rows], [1.0, -1.0], [-1.0, 1.0])


def rows_of(*ids: int) -> list[np.ndarray]:
    return [np.array([i], np.int32) for i in ids]


def test_rows_of_one_prompt_stay_together(monkeypatch):
    """Equal prompts share a fold and a draw of the bootstrap: with rows as prompts the interval would be 1/6 to 5/6."""
    prompts = rows_of(1, 2, 1, 3, 1, 4)
    classifier = Told(monkeypatch, right={0, 2, 4})
    for folds in (2, 4):
        test = two_sample_test(classifier, None, prompts, prompts, prompts, folds=folds, epochs=1, batch_size=1)
        assert (test.accuracy, test.low, test.high, test.prompts) == (0.5, 0.0, 0.9, 4)
    for trained, tried in zip(classifier.trained, classifier.tried, strict=True):
        assert tried and not {int(prompts[i][0]) for i in trained} & {int(prompts[i][0]) for i in tried}
    assert sorted(row for tried in classifier.tried for row in tried) == sorted(2 * [*range(6)])
    with pytest.raises(ValueError, match="5 folds of 4 prompts"):
        two_sample_test(classifier, None, prompts, prompts, prompts, folds=5, epochs=1)


def test_different_prompts_are_dealt_as_ever(monkeypatch):
    """Figures of runs stay comparable: these are of the code before repeated prompts shared a fold."""
    prompts = rows_of(*range(10))
    classifier = Told(monkeypatch, right={0, 3, 4, 8})
    test = two_sample_test(classifier, None, prompts, prompts, prompts, folds=3, epochs=1, batch_size=4, seed=5)
    assert (test.accuracy, test.low, test.high, test.prompts) == (0.4, 0.1, 0.7, 10)
    assert classifier.tried == [{0, 3, 7, 8}, {2, 6, 9}, {1, 4, 5}]


@pytest.mark.parametrize("folds", [1, PROMPTS + 1])
def test_impossible_folds(base, folds):
    same = answers(np.random.default_rng(3))
    with pytest.raises(ValueError, match=f"{folds} folds of {PROMPTS} prompts"):
        measure(base, same, same, folds=folds)
