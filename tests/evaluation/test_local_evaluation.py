"""Models on this machine in gadjax.evaluate: a run's checkpoints and exports, two-sample test, KLs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from gadjax.evaluate import run
from gadjax.evaluation import local_models
from gadjax.evaluation.model_sources import parse_source
from gadjax.evaluation.results import TwoSampleScore, read_results
from gadjax.rollout.engine import Engine
from tests.teacher.fake_server import FakeServer, Reply

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")

LIMIT, BATCH = 8, 4


@pytest.fixture(scope="module")
def exported(finished_run) -> pathlib.Path:
    return finished_run.workdir / "export" / "generator"


@pytest.fixture(scope="module")
def base(other_student) -> pathlib.Path:
    return other_student


def settings(**fields):
    two_sample = dict(two_sample_folds=2, two_sample_epochs=1, two_sample_learning_rate=1e-2)
    return (
        dict(max_response_length=LIMIT, batch_size=BATCH, kl_samples=2, teacher_temperature=0.7) | two_sample | fields
    )


@pytest.fixture(scope="module")
def evaluated(finished_run, exported, base, heldout_file, tmp_path_factory, one_device, quick_compile):
    """An evaluation without a judge of the last checkpoint, an earlier one, an export and the base."""
    out = tmp_path_factory.mktemp("evaluated")
    models = {
        "last": str(finished_run.workdir),
        "warm": f"{finished_run.workdir}@2",
        "export": str(exported),
        "before": str(base),
    }
    loaded = []
    load = local_models.LocalModel.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            local_models.LocalModel, "load", lambda self, **how: (loaded.append(self.source.name), load(self, **how))[1]
        )
        results = run(models, {"sums": heldout_file}, out, base=str(base), teacher=str(base), **settings())
    # The teacher draws at first, then each model does all of its part, and the teacher judges how likely that is.
    assert loaded == ["open-teacher", "last", "warm", "export", "before", "base", "open-teacher"]
    return out, models, results


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_answers_are_those_of_transformers(evaluated, exported, base, transformers_greedy):
    out, *_ = evaluated
    for name, model in {"export": exported, "before": base}.items():
        rows = read(out / "answers" / "sums" / f"{name}.jsonl")
        assert len(rows) == 8
        for row, answer in zip(rows, transformers_greedy(model, [r["content"] for r in rows], LIMIT), strict=True):
            assert (row["response"], row["tokens"]) == (answer.text, answer.tokens)
            assert row["finish_reason"] == ("stop" if answer.ended else "length")


def test_a_checkpoint_answers_as_its_export(evaluated, finished_run):
    out, _, results = evaluated
    answers = {name: read(out / "answers" / "sums" / f"{name}.jsonl") for name in ("last", "export")}
    assert answers["last"] == answers["export"]
    models = {m.name: m for m in results.models}
    assert (models["last"].kind, models["last"].step, models["last"].stage) == ("checkpoint", 6, "gad")
    assert (models["warm"].kind, models["warm"].step, models["warm"].stage) == ("checkpoint", 2, "warmup")
    assert (models["export"].kind, models["export"].step, models["export"].stage) == ("export", None, None)
    assert results.run.workdir == str(finished_run.workdir)
    assert f"{finished_run.workdir.name}. Stages: " in (out / "report.html").read_text()  # with its curves
    last, export = (results.scores["sums"][name] for name in ("last", "export"))
    assert (last.rouge_l, last.ngram_f1, last.distinct) == (export.rouge_l, export.ngram_f1, export.distinct)
    assert (last.lengths, last.two_sample) == (export.lengths, export.two_sample)
    assert results.scores["sums"]["warm"].kl.reverse_per_response != last.kl.reverse_per_response


def test_lengths_are_tokens(evaluated):
    out, _, results = evaluated
    for name in ("last", "before", "teacher"):
        rows = read(out / "answers" / "sums" / f"{name}.jsonl")
        lengths = results.scores["sums"][name].lengths
        assert lengths.mean == np.mean([row["tokens"] for row in rows])
        assert lengths.truncated == np.mean([row["finish_reason"] == "length" for row in rows])
        edges, counts = lengths.histogram.edges, lengths.histogram.counts
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            assert count == sum(low <= row["tokens"] < high for row in rows)
    assert results.settings["length_unit"] == "tokens"


def test_overlap_with_the_teacher(evaluated):
    from gadjax.evaluation.text import ngram_f1, rouge_l

    out, _, results = evaluated
    own, teacher = ([row["response"] for row in read(out / f"answers/sums/{n}.jsonl")] for n in ("warm", "teacher"))
    scores = results.scores["sums"]["warm"]
    assert scores.rouge_l == rouge_l(own, teacher)
    assert scores.ngram_f1 == {str(n): ngram_f1(own, teacher, n) for n in range(1, 6)}


def test_the_two_sample_test_is_on_the_base(evaluated, base, heldout_file):
    """The figure equals that of `two_sample_test` on the same draws."""
    from gadjax.data.schema import read_rows
    from gadjax.distill.state import state_shardings
    from gadjax.evaluation.two_sample import Classifier, adamw_for, two_sample_test
    from gadjax.models.model import Model

    out, models, results = evaluated
    local = local_models.inspect(parse_source("m", models["before"]))
    rows = read_rows(heldout_file)
    chats = [rows.messages(i) for i in range(len(rows))]
    prompts = local.tokenizer.prompt_ids_batch(chats)
    teacher = [local.tokenizer.response_ids(rows.answer(i), True)[:LIMIT] for i in range(len(rows))]
    drawn = [json.loads(line) for line in (out / "cache" / "local.jsonl").read_text().splitlines()]
    assert sum("accuracy" in row for row in drawn) == 3  # the last checkpoint and the export draw alike

    from gadjax.evaluation.cached_model import CachedModel
    from gadjax.evaluation.result_cache import ResultCache

    with ResultCache(out.parent / "copy.jsonl") as cache:
        draws = CachedModel(local, cache, batch_size=BATCH).draw(prompts, LIMIT, 1.0)
    texts = [(local.tokenizer.decode(draw.tokens), draw.ended) for draw in draws]
    student = [local.tokenizer.response_ids(*text)[:LIMIT] for text in texts]
    loaded = local.load(training=True)
    config = dataclasses.replace(local.config, dtype="float32", remat="none")
    model, optimizer = Model(config, "score", loaded.mesh), adamw_for(1e-2)
    classifier = Classifier(model, optimizer, state_shardings(model, optimizer, loaded.mesh))
    params = loaded.params
    expected = two_sample_test(classifier, params, prompts, teacher, student, folds=2, epochs=1)
    found = results.scores["sums"]["before"].two_sample
    assert found == TwoSampleScore(expected.accuracy, expected.low, expected.high, expected.prompts)


def test_kls(evaluated, base):
    """The base against itself as the teacher, at temperatures 1 and 0.7, equals torch, one response at a time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out, _, results = evaluated
    kls = {name: results.scores["sums"][name].kl for name in ("last", "export", "before")}
    assert kls["last"].reverse_per_response == pytest.approx(kls["export"].reverse_per_response, rel=1e-6)
    assert all(k.forward_on == "drawn" and k.teacher_temperature == 0.7 and k.samples == 2 for k in kls.values())
    assert kls["before"].reverse_per_token < kls["last"].reverse_per_token
    assert kls["last"].reverse_per_token_low < kls["last"].reverse_per_token < kls["last"].reverse_per_token_high

    from gadjax.evaluation.cached_model import CachedModel
    from gadjax.evaluation.result_cache import ResultCache

    local = local_models.inspect(parse_source("m", str(base)))
    rows = read(out / "answers" / "sums" / "before.jsonl")
    prompts = local.tokenizer.prompt_ids_batch([row["content"] for row in rows])
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().double()
    nats, tokens = [], []
    with ResultCache(out.parent / "kl.jsonl") as cache:
        answerer = CachedModel(local, cache, batch_size=BATCH)
        for sample in range(2):
            for prompt, draw in zip(prompts, answerer.draw(prompts, LIMIT, 1.0, sample=sample), strict=True):
                ids = torch.tensor([[*prompt.tolist(), *draw.tokens]])
                with torch.no_grad():
                    logits = network(ids).logits[0, len(prompt) - 1 : -1]
                place = torch.arange(len(draw.tokens)), torch.tensor(draw.tokens)
                q, p = (torch.log_softmax(logits / t, -1)[place].sum() for t in (1.0, 0.7))
                nats.append(float(q - p))
                tokens.append(len(draw.tokens))
    assert kls["before"].reverse_per_response == pytest.approx(np.mean(nats), rel=1e-4, abs=1e-5)
    assert kls["before"].reverse_per_token == pytest.approx(np.sum(nats) / np.sum(tokens), rel=1e-4, abs=1e-5)


def test_a_second_time_loads_nothing(evaluated, heldout_file, base, monkeypatch):
    out, models, results = evaluated
    monkeypatch.setattr(local_models.LocalModel, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(Engine, "generate", lambda *_, **__: pytest.fail("an answer was drawn"))
    again = run(models, {"sums": heldout_file}, out, base=str(base), teacher=str(base), **settings())
    assert again.scores == results.scores == read_results(out).scores


def test_changed_weights_are_asked_anew(evaluated, exported, tmp_path):
    copy, changed = tmp_path / "copy", tmp_path / "changed"
    for directory in (copy, changed):
        shutil.copytree(exported, directory)
    tensors = safetensors.numpy.load_file(changed / "model.safetensors")
    name = min(tensors)
    tensors[name] = tensors[name] + np.float32(1e-3)
    safetensors.numpy.save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    identity = [local_models.inspect(parse_source("m", str(path))).identity for path in (exported, copy, changed)]
    assert identity[0] == identity[1] != identity[2]


def test_checkpoints_are_told_apart(finished_run, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(finished_run.workdir, copy)
    sources = [f"{finished_run.workdir}@5", f"{finished_run.workdir}@6", str(finished_run.workdir), f"{copy}@6"]
    before, last, default, moved = (local_models.inspect(parse_source("m", source)).identity for source in sources)
    assert before != last == default == moved


def test_given_answers(exported, base, heldout_file, tmp_path):
    models = {"export": str(exported)}
    given = dict(teacher=str(base), kl_forward="given")
    found = run(models, {"sums": heldout_file}, tmp_path, **settings(**given)).scores["sums"]["export"].kl
    assert found.forward_on == "given"
    local = [local_models.inspect(parse_source("m", str(path))) for path in (base, exported)]
    from gadjax.data.schema import read_rows

    rows = read_rows(heldout_file)
    sides, nats = [], []
    width = 64
    columns = np.arange(width)[None]
    logits_of = jax.jit(local[0].load().model.logits)  # of both, which have one architecture
    for one in local:
        params = one.load().params
        sides.append(lambda tokens, params=params: logits_of(params, tokens, columns, np.ones_like(columns)))
    for i in range(len(rows)):
        prompt = local[0].tokenizer.prompt_ids(rows.messages(i))
        response = local[0].tokenizer.response_ids(rows.answer(i), True)[:LIMIT]
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(prompt) + len(response)] = [*prompt, *response]
        found_by = []
        for logits, temperature in zip(sides, (0.7, 1.0), strict=True):
            scaled = np.asarray(logits(tokens), np.float64)[0, len(prompt) - 1 :][: len(response)] / temperature
            logprobs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
            found_by.append(logprobs[np.arange(len(response)), response].sum())
        nats.append(found_by[0] - found_by[1])
    assert found.forward_per_response == pytest.approx(np.mean(nats), rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": {"d": "{discriminator}"}}, "is a LlamaForTokenClassification, but what is evaluated is a causal"),
        ({"models": {"d": "{workdir}@77"}}, "there is no checkpoint of step 77; there are: "),
        ({"models": {"d": "{other}"}, "teacher": "{base}"}, "--teacher=.* has another tokenizer than d"),
        ({"max_response_length": 120}, "max_position_embeddings is 128, but sequences may reach"),
        ({"base": "{workdir}"}, "--base=.*: expected a Hugging Face directory or hub id"),
        ({"base": "{base}", "two_sample_folds": 9}, "--two_sample_folds=9 is more than the 8 prompts of the set sums"),
        ({"base": "{discriminator}"}, "is a LlamaForTokenClassification"),
        ({"models": {"a": "api:x"}, "base_url": "http://127.0.0.1:9/v1", "teacher": "{base}"}, "--teacher is for KLs"),
    ],
)
def test_mistakes(finished_run, exported, base, heldout_file, tmp_path, write_tokenizer, monkeypatch, fields, message):
    """Mistakes are refused before weights are read."""
    from gadjax.errors import UserError

    other = tmp_path / "other"
    shutil.copytree(base, other)
    write_tokenizer(other, ["quite", "other", "words"])
    places = dict(
        workdir=finished_run.workdir, base=base, other=other, discriminator=exported.with_name("discriminator")
    )
    fill = lambda value: value.format(**places) if isinstance(value, str) else value  # noqa: E731
    models = {name: fill(source) for name, source in fields.pop("models", {"m": str(exported)}).items()}
    monkeypatch.setattr(local_models.LocalModel, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(UserError) as error:
        run(models, {"sums": heldout_file}, tmp_path / "o", **settings(**{k: fill(v) for k, v in fields.items()}))
    assert re.search(message, str(error.value)), error.value
    assert not (tmp_path / "o").exists()


def test_an_api_model_on_the_same_base(base, heldout_file, tmp_path):
    """Samples are requests of their own beside the greedy answers; lengths are in the base's tokens."""
    models = {"remote": "api:remote"}
    with FakeServer(lambda prompt, attempt: Reply(text="four four four")) as server:
        fields = settings(base=str(base), base_url=server.base_url, seed=3)
        results = run(models, {"sums": heldout_file}, tmp_path, **fields)
        scores = results.scores["sums"]
        assert results.settings["two_sample_temperature"] == 1.0  # the file says nothing
        asked = [(request["temperature"], request.get("seed")) for request in server.requests]
        assert sorted(asked, key=str) == sorted([(0.0, None)] * 8 + [(1.0, 3)] * 8, key=str)
        greedy = run(models, {"sums": heldout_file}, tmp_path / "0", **fields, two_sample_temperature=0.0)
        assert len(server.requests) == 16 + 8
    assert scores["remote"].two_sample == greedy.scores["sums"]["remote"].two_sample  # the texts are the same
    local = local_models.inspect(parse_source("m", str(base)))
    assert scores["remote"].lengths.mean == len(local.tokenizer.response_ids("four four four", True))
