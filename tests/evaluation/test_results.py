"""results.json is read as it was written, and every kind of damage is named."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from gadjax.errors import UserError
from gadjax.evaluation import results as schema
from gadjax.evaluation.human import score_votes
from gadjax.evaluation.results import read_results, write_results
from gadjax.evaluation.votes import Vote

UNMEASURED = dict.fromkeys(("rouge_l", "ngram_f1", "judge", "two_sample", "kl"))


def scores(**fields) -> schema.Scores:
    lengths = schema.Lengths(3.5, 3.0, 7.0, 0.25, schema.Histogram([0.0, 4.0, 8.0], [2, 2]))
    return schema.Scores(4, lengths, {"1": 0.5, "2": 0.75, "3": 1.0}, **(UNMEASURED | fields))


def results(**fields) -> schema.Results:
    kl = schema.Kl(*(0.5 * i for i in range(12)), 4, "drawn", "/t", 0.7)
    full = scores(
        rouge_l=0.25,
        ngram_f1={str(n): 0.1 * n for n in range(1, 6)},
        judge=schema.JudgeScore(48.5, 45.0, 52.0, 3, 1),
        two_sample=schema.TwoSampleScore(0.6, 0.5, 0.7, 4),
        kl=kl,
    )
    values = dict(
        format=1,
        gadjax="0.1",
        created="2026-01-01T00:00:00+00:00",
        models=[
            schema.EvaluatedModel("gad", "/run@200", "checkpoint", 200, "gad"),
            schema.EvaluatedModel("gpt", "api:gpt", "api", None, None),
        ],
        sets=[schema.EvaluatedSet("vicuna", "/v.jsonl", 4, "ab" * 32, True)],
        settings={"max_response_length": 16, "temperature": 0, "seed": 0},
        judge=schema.Judge("gpt-4o", "http://127.0.0.1/v1", "gpt-4o", 1, 2),
        scores={"vicuna": {"gad": full, "gpt": scores(), "teacher": scores()}},
        comparisons={"vicuna": [schema.Comparison("gad", "gpt", 1, 2, 1, 1.0, "sign test")]},
        verdicts="verdicts.jsonl",
        run=schema.EvaluatedRun("/run"),
    )
    return schema.Results(**(values | fields))


def test_there_and_back(tmp_path):
    path = write_results(tmp_path, results())
    assert path == tmp_path / "results.json"
    assert read_results(tmp_path) == results()
    bare = results(judge=None, verdicts=None, run=None, comparisons={})
    write_results(tmp_path, bare)
    assert read_results(tmp_path) == bare
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_files_of_versions_without_votes_are_read(tmp_path):
    """Nor had they differences of judge scores, or a best of several."""
    path = write_results(tmp_path, results())
    value = json.loads(path.read_text())
    del value["votes"], value["models"][0]["best_of"]
    for name in ("difference", "low", "high"):
        del value["comparisons"]["vicuna"][0][name]
    path.write_text(json.dumps(value))
    assert read_results(tmp_path) == results()


def test_votes_there_and_back(tmp_path):
    cast = [Vote(voter, "vicuna", str(n), "gad", "gpt", "gad") for voter in "AB" for n in range(3)]
    votes = score_votes(cast, "print", {("vicuna", "gad"): {"0": 0.6}, ("vicuna", "gpt"): {"0": 0.4}})
    assert votes.agreement and votes.judge
    write_results(tmp_path, results(votes=votes))
    assert read_results(tmp_path).votes == votes


def test_the_contract(tmp_path):
    """The names that the report reads."""
    value = json.loads(write_results(tmp_path, results()).read_text())
    assert list(value) == [
        *("format", "gadjax", "created", "models", "sets", "settings", "judge", "scores", "comparisons"),
        *("verdicts", "run", "votes"),
    ]
    assert value["models"][0] == {
        **{"name": "gad", "source": "/run@200", "kind": "checkpoint", "step": 200, "stage": "gad", "best_of": None},
    }
    assert set(value["sets"][0]) == {"name", "path", "prompts", "sha256", "has_teacher"}
    assert set(value["judge"]) == {"model", "base_url", "reference_model", "malformed", "retried"}
    entry = value["scores"]["vicuna"]["gad"]
    assert {"prompts", "lengths", "distinct", "rouge_l", "ngram_f1", "judge", "two_sample", "kl"} == set(entry)
    assert set(entry["lengths"]) == {"mean", "p50", "p95", "truncated", "histogram"}
    assert set(entry["lengths"]["histogram"]) == {"edges", "counts"}
    assert set(entry["judge"]) == {"score", "low", "high", "judged", "malformed"}
    assert set(entry["two_sample"]) == {"accuracy", "low", "high", "prompts"}
    directions = ("reverse_per_token", "reverse_per_response", "forward_per_token", "forward_per_response")
    assert {f"{name}{end}" for name in directions for end in ("", "_low", "_high")} < set(entry["kl"])
    assert {"teacher", "teacher_temperature"} < set(entry["kl"])
    assert set(value["comparisons"]["vicuna"][0]) == {
        *("a", "b", "win", "tie", "lose", "p", "test", "difference", "low", "high"),
    }
    teacher = value["scores"]["vicuna"]["teacher"]
    assert all(teacher[name] is None for name in ("rouge_l", "ngram_f1", "judge", "two_sample", "kl"))


def test_the_best_of_several(tmp_path):
    several = schema.EvaluatedModel("gad", "/r", "export", None, None, schema.BestOf(8, 0.5, "/d", "likelihood"))
    gpt = schema.EvaluatedModel("gpt", "api:gpt", "api", None, None)
    path = write_results(tmp_path, results(models=[several, gpt]))
    assert read_results(tmp_path).models == [several, gpt]
    value = json.loads(path.read_text())
    assert set(value["models"][0]["best_of"]) == {"samples", "temperature", "discriminator", "kind"}
    del value["models"][1]["best_of"]  # as earlier versions wrote it
    path.write_text(json.dumps(value))
    assert read_results(tmp_path).models == [several, gpt]
    value["models"][0]["best_of"]["samples"] = "8"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r'models.0.best_of.samples` is "8": Input should be a valid integer'):
        read_results(tmp_path)


def test_what_is_not_finite_is_not_written(tmp_path):
    broken = dataclasses.replace(results(), settings={"x": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, broken)
    assert not list(tmp_path.iterdir())


def without(value, *path):
    *path, last = path
    for name in path:
        value = value[name]
    del value[last]


def put(new, *path):
    def change(value):
        *before, last = path
        for name in before:
            value = value[name]
        value[last] = new

    return change


ENTRY = ("scores", "vicuna", "gad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(2, "format"), "its format is 2, but this gadjax reads 1"),
        (lambda v: without(v, "sets"), "`sets` is missing"),
        (lambda v: without(v, *ENTRY, "kl"), "`scores.vicuna.gad.kl` is missing"),
        (put(1, "surplus"), "`surplus` is not a field"),
        (put("x", *ENTRY, "prompts"), 'prompts` is "x": Input should be a valid integer'),
        (put(True, *ENTRY, "prompts"), "prompts` is true: Input should be a valid integer"),
        (put(1.5, *ENTRY, "prompts"), "prompts` is 1.5: Input should be a valid integer"),
        (put(None, *ENTRY, "lengths", "mean"), "lengths.mean` is null: Input should be a valid number"),
        (put(float("nan"), *ENTRY, "judge", "score"), "judge.score` is NaN: Input should be a finite number"),
        (put([1.0, "2"], *ENTRY, "lengths", "histogram", "edges"), 'edges.1` is "2": Input should be a valid number'),
        (put([1], *ENTRY, "lengths", "histogram", "counts"), "histogram needs one more edge than counts"),
        (put({}, "models"), r"`models` is \{\}: Input should be a valid array"),
        (put([], *ENTRY), r"scores.vicuna.gad` is \[\]: Input should be an object"),
        (put(1, "sets", 0, "has_teacher"), "`sets.0.has_teacher` is 1: Input should be a valid boolean"),
        (lambda v: without(v, *ENTRY), "scores.vicuna lacks the model 'gad'"),
        (lambda v: without(v, "scores", "vicuna"), "scores.vicuna lacks the model 'gad'"),
        (put([], "comparisons", "dolly"), "comparisons has a set 'dolly'"),
    ],
)
def test_damage(tmp_path, change, message):
    path = write_results(tmp_path, results())
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as error:
        read_results(tmp_path)
    assert re.match(f"{re.escape(str(path))}: ", str(error.value))


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(UserError, match=r"results\.json: cannot be read \(No such file"):
        read_results(tmp_path)
    for text, message in {"{": "not JSON", "[]": "its format is None"}.items():
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_results(tmp_path)
