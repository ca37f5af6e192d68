"""What an evaluation checks and settles before it loads a model, and its progress."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import Callable

import pytest

from gadjax.errors import UserError
from gadjax.evaluation import local_evaluation
from gadjax.evaluation.evaluator import Evaluation
from gadjax.evaluation.settings import EvaluationSettings
from tests.evaluation.api_evaluation import quality, write_prompts
from tests.evaluation.fake_judge import FakeJudge


class Models:
    """Stands in for `LocalEvaluation`, and keeps what it is given."""

    def __init__(self, sources, sets, settings, watch):
        self.sources, self.settings = sources, settings


@pytest.fixture
def settled(tmp_path, monkeypatch) -> Callable:
    """Makes an evaluation on sets whose rows have these temperatures; returns it with its messages."""
    monkeypatch.setattr(local_evaluation, "LocalEvaluation", Models)

    def make(*temperatures: list[float | None], **fields) -> tuple[Evaluation, list[str]]:
        sets = {}
        for number, of_set in enumerate(temperatures):
            path = tmp_path / f"{number}.jsonl"
            rows = [{"prompt": f"p{i}", "teacher_response": "a", "temperature": t} for i, t in enumerate(of_set)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sets[f"s{number}"] = str(path)
        said: list[str] = []
        settings = EvaluationSettings(**({"base": "org/base", "teacher": "org/teacher"} | fields))
        nothing = lambda *_: None  # noqa: E731
        return Evaluation({"m": "org/m"}, sets, tmp_path / "o", settings, say=said.append, watch=nothing), said

    return make


def used(evaluation: Evaluation) -> tuple[float | None, float | None]:
    settings = evaluation.local.settings
    assert settings == evaluation.settings  # what results.json gets
    return settings.two_sample_temperature, settings.teacher_temperature


def test_temperatures_are_those_of_the_sets(settled):
    for temperatures, expected in (([[0.7, 0.7], [None]], 0.7), ([[None], [None]], 1.0)):
        for kl_forward in ("drawn", "given"):
            evaluation, said = settled(*temperatures, kl_forward=kl_forward)
            assert used(evaluation) == (expected, expected) and not said
    assert used(settled([0.7], teacher=None)[0]) == (0.7, None)  # none is recorded that nothing used
    assert used(settled([0.0], teacher=None)[0]) == (0.0, None)


def test_a_flag_that_says_otherwise_is_warned_of(settled, tmp_path):
    evaluation, said = settled([0.7], [1.0], two_sample_temperature=0.0, teacher_temperature=1.0)
    assert used(evaluation) == (0.0, 1.0)
    where = f"the set s0 was collected at 0.7 ({tmp_path}/0.jsonl:1)"
    assert said == [
        f"warning: --two_sample_temperature=0, but {where}",
        f"warning: --two_sample_temperature=0, but the set s1 was collected at 1 ({tmp_path}/1.jsonl:1)",
        f"warning: --teacher_temperature=1, but {where}",
    ]


@pytest.mark.parametrize(
    ("temperatures", "fields", "message"),
    [
        ([[0.7], [1.0]], {}, r"^--two_sample_temperature is missing: .* 0\.7 \(s0, .*:1\) and 1 \(s1, .*:1\); give"),
        ([[0.7, 1.0]], {"base": None}, r"^--teacher_temperature is missing: .* 0\.7 \(s0, .*:1\) and 1 \(s0, .*:2\)"),
        ([[0.0]], {}, "^--teacher_temperature is missing: .* collected greedily, at temperature 0"),
        ([[0.7, 1.0]], {"kl_forward": "given"}, r"the set s0 was collected at several temperatures, 0\.7 \(.*:1\) and"),
        (
            [[0.7]],
            {"kl_forward": "given", "teacher_temperature": 1.0},
            r"at temperature 0\.7; give it as --teacher_temp",
        ),
    ],
)
def test_temperatures_that_cannot_be(settled, temperatures, fields, message):
    with pytest.raises(UserError, match=message):
        settled(*temperatures, **fields)


def test_progress_shows_before_the_first_is_done(tmp_path):
    seen: list[tuple[str, int, int]] = []
    with FakeJudge(quality) as server:
        settings = EvaluationSettings(base_url=server.base_url)
        models, sets = {"good": "api:good"}, {"v": str(write_prompts(tmp_path / "v.jsonl"))}
        Evaluation(models, sets, tmp_path / "o", settings, say=str, watch=lambda *args: seen.append(args)).run()
    overlap = [args for args in seen if args[0] == "overlap, v"]
    assert overlap == [("overlap, v", 0, 1), ("overlap, v", 1, 1)]


def test_in_a_notebook(tmp_path):
    """A notebook has a running event loop."""
    from gadjax.evaluate import run

    prompts: pathlib.Path = write_prompts(tmp_path / "v.jsonl")

    async def cell(server: FakeJudge):
        return run({"good": "api:good"}, {"v": prompts}, tmp_path / "o", base_url=server.base_url, judge="judge")

    with FakeJudge(quality) as server:
        results = asyncio.run(cell(server))
        assert results.scores["v"]["good"].judge.judged == 12
        server.verdict = lambda *_: pytest.fail("asked again")
        assert asyncio.run(cell(server)).scores == results.scores
