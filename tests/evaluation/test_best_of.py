"""A model that answers with the best of several draws, in gadjax.evaluate, against a loop that draws one by one."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.evaluate import run
from gadjax.evaluation import best_of, local_models
from gadjax.evaluation.cached_model import CachedModel
from gadjax.evaluation.model_sources import parse_source
from gadjax.evaluation.result_cache import ResultCache
from gadjax.evaluation.results import BestOf, read_results
from gadjax.rollout.engine import Engine
from tests.evaluation.alone import Alone

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")

LIMIT, SAMPLES = 8, 3
SETTINGS = dict(max_response_length=LIMIT, batch_size=4)
TWO_SAMPLE = dict(two_sample_folds=2, two_sample_epochs=1, two_sample_learning_rate=1e-2, two_sample_temperature=1.0)
KINDS = ("score", "likelihood")


@pytest.fixture(scope="module")
def export(finished_run) -> pathlib.Path:
    return finished_run.workdir / "export"


@pytest.fixture(scope="module")
def discriminators(export, other_student) -> dict[str, pathlib.Path]:
    return {"score": export / "discriminator", "likelihood": other_student}


@pytest.fixture(scope="module")
def models(finished_run, export, discriminators) -> dict[str, str]:
    """A checkpoint alone, and with a discriminator of either kind; the export, which is the same model."""
    several = f"+best_of={SAMPLES}+discriminator={discriminators['score']}"
    other = f"+best_of={SAMPLES}+temperature=1+discriminator={discriminators['likelihood']}"
    workdir = str(finished_run.workdir)
    return {"plain": workdir, "score": workdir + several, "likelihood": str(export / "generator") + other}


@pytest.fixture(scope="module")
def evaluated(models, other_student, heldout_file, tmp_path_factory, one_device, quick_compile, shared_programs):
    """An evaluation with a two-sample test, and the names of the networks in the order that they were loaded."""
    out, loaded, load = tmp_path_factory.mktemp("best"), [], local_models.LocalModel.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            local_models.LocalModel, "load", lambda self, **how: (loaded.append(self.source.name), load(self, **how))[1]
        )
        results = run(models, {"sums": heldout_file}, out, base=str(other_student), **SETTINGS, **TWO_SAMPLE)
    return out, results, loaded


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def by_hand(export, discriminators, heldout_file, tmp_path_factory, one_device, quick_compile, shared_programs):
    """By kind and temperature: the best draws, found one draw and one score at a time."""
    from gadjax.data.schema import read_rows

    rows = read_rows(heldout_file)
    chats = [rows.messages(i) for i in range(len(rows))]
    generator = Alone(export / "generator")
    prompts = generator.tokenizer.prompt_ids_batch(chats)
    judges = {kind: Alone(directory) for kind, directory in discriminators.items()}
    local = local_models.inspect(parse_source("m", str(export / "generator")))
    found, apart = {}, 0
    with ResultCache(tmp_path_factory.mktemp("hand") / "cache.jsonl") as cache:
        model = CachedModel(local, cache, batch_size=1)
        for kind, temperature in (("score", 0.8), ("likelihood", 1.0), ("score", 1.0)):
            best = []
            for prompt in prompts:
                draws = [model.draw([prompt], LIMIT, temperature, sample=n)[0].tokens for n in range(SAMPLES)]
                judge = judges[kind]
                if kind == "score":
                    scores = [judge.score(prompt, ids) for ids in draws]
                else:
                    nats = [(judge.nats(prompt, ids, 1.0), generator.nats(prompt, ids, temperature)) for ids in draws]
                    scores = [phi - q for phi, q in nats]
                best.append(generator.tokenizer.decode(draws[int(np.argmax(scores))]))
                apart += best[-1] != generator.tokenizer.decode(draws[0])
            found[kind, temperature] = best
    assert apart > 3  # the first draw is not always the best
    return found


@pytest.mark.parametrize(("kind", "temperature"), [("score", 0.8), ("likelihood", 1.0)])
def test_answers_are_the_best_of_the_draws(evaluated, by_hand, kind, temperature):
    out, *_ = evaluated
    answers = [row["response"] for row in read(out / "answers" / "sums" / f"{kind}.jsonl")]
    assert answers == by_hand[kind, temperature]


def test_the_two_sample_test_is_on_the_best_of_draws_at_its_temperature(evaluated, by_hand, models, heldout_file):
    out, results, _ = evaluated
    from gadjax.evaluation import local_evaluation
    from gadjax.evaluation.prompt_sets import read_set
    from gadjax.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(base=None, **SETTINGS, **TWO_SAMPLE)
    sources = [parse_source(name, given) for name, given in models.items()]
    sets = [read_set("sums", str(heldout_file), max_prompts=0)]
    local = local_evaluation.LocalEvaluation(sources, sets, settings, lambda *_: None)
    with ResultCache(out / "cache" / "local.jsonl") as cache:
        for kind in KINDS:
            found = [one.text for one in local.sampled(kind, cache, 1.0)["sums"]]
            assert found == by_hand[kind, 1.0]
    tests = {name: results.scores["sums"][name].two_sample for name in models}
    assert all(test.prompts == 8 for test in tests.values())


def test_one_network_is_loaded_at_a_time(evaluated):
    *_, loaded = evaluated
    assert loaded == ["plain", "score", "discriminator", "likelihood", "discriminator", "base"]


def test_a_second_time_loads_nothing(evaluated, models, other_student, heldout_file, monkeypatch):
    out, results, _ = evaluated
    monkeypatch.setattr(local_models.LocalModel, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(Engine, "generate_groups", lambda *_, **__: pytest.fail("an answer was drawn"))
    again = run(models, {"sums": heldout_file}, out, base=str(other_student), **SETTINGS, **TWO_SAMPLE)
    assert again.scores == results.scores


def test_fewer_draws_are_in_the_cache(evaluated, models, heldout_file, monkeypatch):
    out, *_ = evaluated
    monkeypatch.setattr(Engine, "generate_groups", lambda *_, **__: pytest.fail("an answer was drawn"))
    fewer = {"fewer": models["score"].replace(f"best_of={SAMPLES}", "best_of=2")}
    assert run(fewer, {"sums": heldout_file}, out, **SETTINGS).models[0].best_of.samples == 2


def test_results_and_page_say_what_it_is(models, discriminators, heldout_file, tmp_path):
    results = run({"best": models["score"]}, {"sums": heldout_file}, tmp_path, **SETTINGS)
    (model,) = results.models
    assert model.best_of == BestOf(SAMPLES, 0.8, str(discriminators["score"]), "score")
    assert (model.kind, model.step, model.stage, model.source) == ("checkpoint", 6, "gad", models["score"])
    assert read_results(tmp_path) == results
    page = (tmp_path / "report.html").read_text()
    assert f"<td>checkpoint, best of {SAMPLES} draws at temperature 0.8, discriminator of kind score</td>" in page
    assert f'"step 6, best of {SAMPLES}"' in page or f"step 6, best of {SAMPLES}" in page
    said = (
        f"best: the best of {SAMPLES} draws at temperature 0.8, by the discriminator {discriminators['score']} of kind"
    )
    assert said in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        (
            "{generator}",
            {"teacher": "{base}"},
            "--teacher is for KLs, but the best of several draws has no likelihoods: ",
        ),
        ("{other}", {}, r"^--models=m=\.\.\.\+discriminator=.* has another tokenizer than .*other"),
        ("{generator}|{workdir}", {}, "expected an export, such as WORKDIR/export/discriminator"),
        ("{generator}|{tmp}/absent", {}, "absent: no such directory"),
        ("{generator}|api:x", {}, "expected an export"),
        ("{generator}", {"max_response_length": 120}, "max_position_embeddings is 128"),
        ("{generator}|{short}", {}, "short, set sums: max_position_embeddings is 16"),
    ],
)
def test_mistakes(
    finished_run, export, other_student, heldout_file, tmp_path, misfits, monkeypatch, source, fields, message
):
    """Mistakes are refused before weights are read."""
    places = misfits | dict(
        generator=export / "generator", workdir=finished_run.workdir, base=other_student, tmp=tmp_path
    )
    fill = lambda value: value.format(**places) if isinstance(value, str) else value  # noqa: E731
    source, _, judge = fill(source).partition("|")
    given = f"{source}+best_of=2+discriminator={judge or export / 'discriminator'}"
    monkeypatch.setattr(local_models.LocalModel, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    fields = SETTINGS | {name: fill(value) for name, value in fields.items()}
    with pytest.raises(UserError) as error:
        run({"m": given}, {"sums": heldout_file}, tmp_path / "o", **fields)
    assert re.search(message, str(error.value)), error.value


def test_of_equals_the_first():
    assert best_of.places(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]
