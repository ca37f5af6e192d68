"""Draws, likelihoods and divergences of tiny models against the enumeration of every response in float64."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types

import jax
import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.evaluation import kl
from gadjax.evaluation.cached_model import CachedModel, ResponseTokens
from gadjax.evaluation.local_models import Loaded, LocalModel
from gadjax.evaluation.model_sources import ModelSource
from gadjax.evaluation.result_cache import ResultCache
from gadjax.models.architecture import ModelConfig
from gadjax.models.model import Model
from gadjax.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures("quick_compile")

VOCAB, EOS, LIMIT, TEMPERATURE, WIDTH = 5, (1, 3), 3, 0.7, 16
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    initializer_range=0.4,
)
PROMPT = np.array([2, 0, 4], np.int32)
MANY = [PROMPT] * 64  # draws of one shape, and so of one program


@dataclasses.dataclass(frozen=True)
class Tiny(LocalModel):
    """A model with random weights and no files."""

    seed: int = 0

    def load(self, *, training: bool = False) -> Loaded:
        mesh = meshes.make_mesh(1, 1, 1, jax.devices()[:1])
        model = Model(self.config, "lm", mesh)
        return Loaded(model, jax.jit(model.init)(jax.random.key(self.seed)), mesh)


def tiny(name: str, seed: int, eos_ids=EOS) -> Tiny:
    tokenizer = types.SimpleNamespace(pad_id=0)
    return Tiny(ModelSource(name, name, "export", name), None, CONFIG, "float32", tokenizer, eos_ids, name, seed=seed)


STUDENT, TEACHER = tiny("student", 1), tiny("teacher", 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with ResultCache(tmp_path_factory.mktemp("kl") / "local.jsonl") as cache:
        yield cache


@pytest.fixture(scope="module")
def student(cache, quick_compile):
    return CachedModel(STUDENT, cache, batch_size=len(MANY))


@pytest.fixture(scope="module")
def teacher(cache, quick_compile):
    return CachedModel(TEACHER, cache, batch_size=len(MANY))


@functools.cache
def dense(seed: int):
    """A model's logits at every position."""
    model, params, _ = tiny("", seed).load()
    columns = np.arange(WIDTH)[None]
    return jax.jit(lambda tokens: model.logits(params, tokens, columns, np.ones_like(columns)))


def every_response() -> list[tuple[int, ...]]:
    """All responses that end at an EOS or are cut at the limit."""
    found = []
    for length in range(1, LIMIT + 1):
        for ids in itertools.product(range(VOCAB), repeat=length):
            if not set(ids[:-1]) & set(EOS) and (ids[-1] in EOS or length == LIMIT):
                found.append(ids)
    return found


def exact(local: Tiny, temperature: float, prompt: np.ndarray = PROMPT) -> dict[tuple[int, ...], float]:
    """Log-probability of every response, from dense logits in float64."""
    logits = dense(local.seed)
    found = {}
    for ids in every_response():
        tokens = np.zeros((1, WIDTH), np.int32)  # one shape; what follows is not seen
        tokens[0, : len(prompt) + len(ids)] = [*prompt, *ids]
        scaled = np.asarray(logits(tokens), np.float64)[0] / temperature
        table = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
        found[ids] = float(sum(table[len(prompt) - 1 + i, token] for i, token in enumerate(ids)))
    assert sum(np.exp(list(found.values()))) == pytest.approx(1, abs=1e-9)
    return found


@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_likelihoods_of_every_response(student, temperature):
    expected = exact(STUDENT, temperature)
    responses = list(expected)
    found = student.log_likelihoods([PROMPT] * len(responses), responses, temperature)
    np.testing.assert_allclose(found, list(expected.values()), atol=1e-5)


def test_prompts_of_several_lengths(student):
    prompts = [PROMPT, np.array([4], np.int32), np.array([0, 2, 2, 0, 4, 2, 0, 4, 2, 2], np.int32)]
    found = student.log_likelihoods(prompts, [(2, 3)] * 3, 1.0)
    np.testing.assert_allclose(found, [exact(STUDENT, 1.0, prompt)[2, 3] for prompt in prompts], atol=1e-5)


def test_draws_are_of_the_whole_distribution(student):
    """The chi-squared statistic of 4,096 draws, against that of the exact probabilities."""
    stats = pytest.importorskip("scipy.stats")
    samples = kl.draw_responses(student, MANY, LIMIT, 1.0, 64, EOS)
    expected = exact(STUDENT, 1.0)
    counts = dict.fromkeys(expected, 0)
    for draw in itertools.chain(*samples.draws):
        counts[draw.tokens] += 1
        assert draw.ended == (draw.tokens[-1] in EOS)
    wanted = {ids: 4096 * np.exp(logprob) for ids, logprob in expected.items()}
    common = [ids for ids in wanted if wanted[ids] >= 5]
    rare = [sum(x[ids] for ids in wanted if wanted[ids] < 5) for x in (counts, wanted)]
    observed, right = ([x[ids] for ids in common] + [r] for x, r in zip((counts, wanted), rare, strict=True))
    assert stats.chisquare(observed, right).pvalue > 1e-3


def measured(student, teacher, samples=32):
    own = kl.draw_responses(student, MANY, LIMIT, 1.0, samples, EOS)
    theirs = kl.draw_responses(teacher, MANY, LIMIT, TEMPERATURE, samples, EOS)
    reverse = kl.divergence(
        kl.likelihoods(student, MANY, own, 1.0),
        kl.likelihoods(teacher, MANY, own, TEMPERATURE),
        own.lengths(),
    )
    forward = kl.divergence(
        kl.likelihoods(teacher, MANY, theirs, TEMPERATURE),
        kl.likelihoods(student, MANY, theirs, 1.0),
        theirs.lengths(),
    )
    return reverse, forward


def test_against_the_exact_divergences(student, teacher):
    """The estimate is within two widths of its interval (four standard errors), and far from the other direction."""
    q, p = exact(STUDENT, 1.0), exact(TEACHER, TEMPERATURE)
    expected = []
    for own, other in ((q, p), (p, q)):
        nats = sum(np.exp(own[ids]) * (own[ids] - other[ids]) for ids in own)
        tokens = sum(np.exp(own[ids]) * len(ids) for ids in own)
        expected.append((nats, nats / tokens))
    assert expected[0][0] > 0.1 and abs(expected[0][0] - expected[1][0]) > 0.05  # the models differ, and so do the KLs
    for found, (per_response, per_token) in zip(measured(student, teacher), expected, strict=True):
        for estimate, truth in ((found.per_response, per_response), (found.per_token, per_token)):
            width = estimate.high - estimate.low
            assert 0 < width < 0.4 * truth
            assert abs(estimate.value - truth) < width, (estimate, truth)


def test_a_model_and_itself(student, cache):
    """The KL is 0 at temperature 1, but for rounding: batches are composed differently."""
    own = kl.draw_responses(student, MANY, LIMIT, 1.0, 3, EOS)
    q = kl.likelihoods(student, MANY, own, 1.0)
    other = CachedModel(dataclasses.replace(STUDENT, identity="a copy"), cache, batch_size=len(MANY))
    p = kl.likelihoods(other, MANY, own, 1.0)
    found = kl.divergence(q, p, own.lengths())
    assert np.abs([*found.per_token, *found.per_response]).max() < 1e-5
    assert q.shape == own.lengths().shape == (64, 3)


def test_the_estimator_by_hand():
    own, other = np.array([[-1.0, -2.0], [-3.0, -3.0]]), np.array([[-2.0, -4.0], [-3.0, -4.0]])
    found = kl.divergence(own, other, np.array([[1, 3], [2, 2]]))
    assert found.per_response.value == (1 + 2 + 0 + 1) / 4
    assert found.per_token.value == (1 + 2 + 0 + 1) / 8
    assert found.per_response.low == 0.5 and found.per_response.high == 1.5  # of two prompts


def test_draws_do_not_depend_on_their_neighbours(student, cache, tmp_path):
    """Draws do not depend on order, other prompts, batches or the cache; equal prompts get draws of their own."""
    other = np.array([4, 4], np.int32)
    prompts = [PROMPT, other, PROMPT, np.array([0] * 9, np.int32)]
    with ResultCache(tmp_path / "fresh.jsonl") as fresh:
        small = CachedModel(STUDENT, fresh, batch_size=2)
        first = small.draw(prompts, 12, 1.0)
        assert small.draw([other], 12, 1.0) == first[1:2]
    with ResultCache(tmp_path / "again.jsonl") as again:
        found = CachedModel(STUDENT, again, batch_size=8).draw([other, PROMPT, PROMPT], 12, 1.0)
        assert found == [first[1], first[0], first[2]]
    many = [student.draw(MANY, LIMIT, 1.0, sample=sample) for sample in (1, 2)]
    assert many[0] != many[1] and len(set(many[0])) > 4


def test_what_is_known_needs_no_weights(cache, student, monkeypatch):
    expected = student.draw(MANY, LIMIT, 1.0), student.log_likelihoods(MANY, [(2, 1)] * 64, 1.0).tolist()
    monkeypatch.setattr(Tiny, "load", lambda *_, **__: pytest.fail("the weights were loaded"))
    again = CachedModel(tiny("student", 1), cache, batch_size=3)
    assert again.draw(MANY, LIMIT, 1.0) == expected[0]
    assert again.log_likelihoods(MANY, [(2, 1)] * 64, 1.0).tolist() == expected[1]


@pytest.mark.parametrize(
    "change",
    [dict(identity="another"), dict(eos_ids=(1,)), "limit", "temperature", "seed", "prompt"],
    ids=str,
)
def test_what_changed_is_drawn_anew(cache, student, change, monkeypatch):
    student.draw(MANY, LIMIT, 1.0)
    called = []
    monkeypatch.setattr(Tiny, "load", lambda self, **_: called.append(1) or _stop())
    local = dataclasses.replace(STUDENT, **change) if isinstance(change, dict) else STUDENT
    answerer = CachedModel(local, cache, seed=7 if change == "seed" else 0)
    prompt = PROMPT[::-1].copy() if change == "prompt" else PROMPT
    with pytest.raises(ZeroDivisionError):
        answerer.draw([prompt], 4 if change == "limit" else LIMIT, 0.9 if change == "temperature" else 1.0)
    assert called


def _stop():
    raise ZeroDivisionError


def test_more_ids_than_the_other_knows(student):
    drawn = kl.Drawn([[ResponseTokens((2, 8), False)]])
    with pytest.raises(UserError, match=r"has 5 token ids, but a response holds id 8, .* the KL is infinite"):
        kl.likelihoods(student, [PROMPT], drawn, 1.0)


def test_ends_of_either():
    assert kl.shared_eos(tiny("a", 0, (4, 1)), tiny("b", 0, (3,))) == (1, 3, 4)
