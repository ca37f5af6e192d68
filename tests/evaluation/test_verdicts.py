"""A judge behind an API in gadjax.evaluate: references, verdicts that are asked again, and what cannot work."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from gadjax.evaluation.results import read_results
from tests.evaluation.api_evaluation import KEY, PROMPTS, evaluator, quality, read, write_prompts
from tests.evaluation.fake_judge import FakeJudge
from tests.teacher.fake_server import Reply, error


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "v.jsonl")


@pytest.fixture
def evaluate(command, tmp_path, monkeypatch):
    return evaluator(command, tmp_path / "out", monkeypatch)


def test_answers_that_are_the_same_are_judged_once(evaluate, prompts, tmp_path):
    with FakeJudge(quality) as server:
        assert evaluate(server, prompts, models="a=api:good,b=api:good").status == 0
    assert len(server.verdicts()) == PROMPTS
    (compared,) = read_results(tmp_path / "out").comparisons["vicuna"]
    assert (compared.tie, compared.p) == (PROMPTS, 1.0)


def test_malformed_verdicts_are_asked_again_then_counted(evaluate, prompts, tmp_path):
    def verdict(first, second, question, attempt):
        if "prompt 1\n" in question:
            return "I cannot decide."
        if "prompt 2\n" in question:
            return "8/10 9/10" if attempt < 3 else f"{first:g}, {second:g}"
        return f"{first:g} {second:g}"

    with FakeJudge(quality, verdict) as server:
        done = evaluate(server, prompts, models="good=api:good")
        assert done.status == 0, done.err
        asked = server.verdicts()
        assert len(asked) == PROMPTS - 2 + 3 + 3
        # Fresh attempts: drawn, where the first was greedy.
        assert sorted(r["temperature"] for r in asked) == [0] * PROMPTS + [1] * 4
        assert evaluate(server, prompts, models="good=api:good").status == 0
        assert len(server.verdicts()) == len(asked)  # malformed ones were paid for too
    results = read_results(tmp_path / "out")
    judged = results.scores["vicuna"]["good"].judge
    assert (judged.judged, judged.malformed) == (PROMPTS - 1, 1)
    assert (results.judge.malformed, results.judge.retried) == (1, 4)
    shares = [quality("good", f"prompt {i}") / (quality("good", f"prompt {i}") + 5) for i in range(PROMPTS) if i != 1]
    assert judged.score == pytest.approx(100 * np.mean(shares))
    (lost,) = [v for v in read(tmp_path / "out" / "verdicts.jsonl") if v["score"] is None]
    assert (lost["id"], lost["reference_score"], lost["text"]) == ("id1", None, "I cannot decide.")


def test_what_the_judge_refuses_is_said_and_asked_again(evaluate, prompts, tmp_path):
    def verdict(first, second, question, attempt):
        return error(400, "content policy") if "prompt 7\n" in question and attempt == 1 else f"{first:g} {second:g}"

    with FakeJudge(quality, verdict) as server:
        done = evaluate(server, prompts, models="good=api:good")
        assert done.status == 1
        assert "1 questions to the judge failed; the same command asks them again:" in done.err
        assert "verdict on good's answer to 'id7' of vicuna: HTTP 400: content policy" in done.err
        results = read_results(tmp_path / "out")
        assert results.scores["vicuna"]["good"].judge.judged == PROMPTS - 1 and results.settings["unanswered"] == 1
        before = len(server.requests)
        assert evaluate(server, prompts, models="good=api:good").status == 0
        assert len(server.requests) == before + 1
    assert read_results(tmp_path / "out").scores["vicuna"]["good"].judge.judged == PROMPTS


def test_a_malformed_verdict_whose_second_attempt_fails_is_unanswered(evaluate, prompts, tmp_path):
    """It is not counted as malformed, since the next evaluation asks for it again."""

    def verdict(first, second, question, attempt):
        if "prompt 1\n" not in question:
            return f"{first:g} {second:g}"
        return "I cannot decide." if attempt == 1 else error(400, "no more")

    with FakeJudge(quality, verdict) as server:
        done = evaluate(server, prompts, models="good=api:good")
        assert done.status == 1 and "verdict on good's answer to 'id1' of vicuna: HTTP 400: no more" in done.err
        results = read_results(tmp_path / "out")
        judged = results.scores["vicuna"]["good"].judge
        assert (judged.judged, judged.malformed, results.judge.malformed) == (PROMPTS - 1, 0, 0)
        assert results.settings["unanswered"] == 1
        assert "id1" not in [row["id"] for row in read(tmp_path / "out" / "verdicts.jsonl")]
        server.verdict = lambda first, second, *_: f"{first:g} {second:g}"
        before = len(server.requests)
        assert evaluate(server, prompts, models="good=api:good").status == 0
        assert len(server.requests) == before + 1
    assert read_results(tmp_path / "out").scores["vicuna"]["good"].judge.judged == PROMPTS


class Forgetful(FakeJudge):
    """Gives empty reference answers: `blank` has, by prompt, how many requests of it, of any model, must come first."""

    def __init__(self, blank: dict[str, int]):
        super().__init__(quality)
        self.blank = blank

    def _behave(self, prompt, attempt):
        empty = self._model.name == "judge" and attempt <= self.blank.get(prompt, 0)
        return Reply(text="  ") if empty else super()._behave(prompt, attempt)


def test_empty_reference_answers_are_asked_again_then_reported(evaluate, prompts, tmp_path):
    with Forgetful({"prompt 1": 2, "prompt 2": 5}) as server:
        done = evaluate(server, prompts, models="good=api:good")
        assert done.status == 1
        assert "1 reference answers were empty at every attempt" in done.err and "asks them again" not in done.err
        assert "raise --max_response_length" in done.err and "give --references=SET=FILE" in done.err
        assert "  reference answer to 'id2' of vicuna\n" in done.err
        asked = server.answers("judge")
        assert (len(asked), asked.count("prompt 1"), asked.count("prompt 2")) == (PROMPTS + 3, 2, 3)
        drawn = [r["temperature"] for r in server.requests if r["messages"][-1]["content"] == "prompt 2"]
        assert sorted(drawn) == [0, 0, 1, 1]  # the model's answer and the first attempt; then others than that
        results = read_results(tmp_path / "out")
        assert results.scores["vicuna"]["good"].judge.judged == PROMPTS - 1 and results.settings["unanswered"] == 1
        before = len(server.requests)
        assert evaluate(server, prompts, models="good=api:good").status == 1
        assert len(server.requests) == before  # all attempts were paid for
        more = evaluate(server, prompts, "--judge_attempts=20", models="good=api:good")
        assert more.status == 0, more.err
    assert read_results(tmp_path / "out").scores["vicuna"]["good"].judge.judged == PROMPTS


def test_references_from_a_file(evaluate, prompts, tmp_path):
    references = tmp_path / "r.jsonl"
    rows = [
        {"id": f"id{i}", "prompt": "x", "response": f"by hand quality={i % 9 + 1}"} for i in reversed(range(PROMPTS))
    ]
    references.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    with FakeJudge(quality) as server:
        done = evaluate(server, prompts, f"--references=vicuna={references}", models="good=api:good")
    assert done.status == 0, done.err
    assert not server.answers("judge")
    results = read_results(tmp_path / "out")
    shares = [(q := quality("good", f"prompt {i}")) / (q + i % 9 + 1) for i in range(PROMPTS)]
    assert results.scores["vicuna"]["good"].judge.score == pytest.approx(100 * np.mean(shares))
    assert results.judge.reference_model == "given"


def test_another_reference_model(evaluate, prompts, tmp_path):
    with FakeJudge(quality) as server:
        done = evaluate(server, prompts, "--reference_model=worse", models="good=api:good")
        assert done.status == 0, done.err
        assert len(server.answers("worse")) == PROMPTS and not server.answers("judge")
    shares = [(q := quality("good", f"prompt {i}")) / (q + 1) for i in range(PROMPTS)]
    judged = read_results(tmp_path / "out").scores["vicuna"]["good"].judge
    assert judged.score == pytest.approx(100 * np.mean(shares))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, f"bad key {KEY}"), r"refuses the key in OPENAI_API_KEY"),
        (error(404, "no such model", "model_not_found"), r"refuses --judge=judge"),
        (error(400, "Unsupported: use max_completion_tokens"), "give --judge_limit_field=max_completion_tokens"),
        (
            error(400, "temperature"),
            "16 questions in a row to judge at --base_url=.* failed.* --judge_request_fields=",
        ),
        (Reply(status=500, body=b"{}"), "16 questions in a row to judge at --base_url=http.* failed"),
    ],
)
def test_a_judge_that_cannot_work(evaluate, prompts, tmp_path, reply, message):
    with FakeJudge(quality, lambda *_: reply) as server:
        done = evaluate(server, prompts, "--max_retries=0")
        assert done.status == 2
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert re.search(message, line) and KEY not in done.err
        # The models' answers were paid for: mended, only verdicts are asked for.
        server.verdict = lambda a, b, *_: f"{a:g} {b:g}"
        before = len(server.requests)
        assert evaluate(server, prompts).status == 0
        assert len(server.requests) - before == 2 * PROMPTS
