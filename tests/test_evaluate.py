"""python -m gadjax.evaluate with models behind an API and a judge, all on loopback; tests/evaluation has the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gadjax.evaluation.results import read_results
from tests.evaluation.api_evaluation import KEY, PROMPTS, evaluator, quality, read, write_prompts
from tests.evaluation.fake_judge import FakeJudge


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "v.jsonl")


@pytest.fixture
def evaluate(command, tmp_path, monkeypatch):
    return evaluator(command, tmp_path / "out", monkeypatch)


def test_scores(evaluate, prompts, tmp_path):
    with FakeJudge(quality) as server:
        done = evaluate(server, prompts)
    assert done.status == 0, done.err
    out = tmp_path / "out"
    assert ">words in an answer<" in (tmp_path / "out/report.html").read_text()
    assert done.out.splitlines()[-1] == f"all of it: {out}/report.html, {out}/table.md, {out}/results.json"
    results = read_results(out)
    scores = results.scores["vicuna"]
    for model in ("good", "poor"):
        shares = [(q := quality(model, f"prompt {i}")) / (q + 5) for i in range(PROMPTS)]
        judged = scores[model].judge
        assert re.search(rf"^{model} +{judged.score:.1f} ± \d+\.\d +5\.0$", done.out, re.MULTILINE)
        assert judged.score == pytest.approx(100 * np.mean(shares))
        assert judged.low <= judged.score <= judged.high
        assert (judged.judged, judged.malformed) == (PROMPTS, 0)
        assert scores[model].lengths.mean == 5  # words of "good on prompt 3 quality=8"
        assert sum(scores[model].lengths.histogram.counts) == PROMPTS
        assert scores[model].lengths.truncated == 0
        assert (scores[model].rouge_l, scores[model].two_sample, scores[model].kl) == (None, None, None)
    (compared,) = results.comparisons["vicuna"]
    assert (compared.a, compared.b, compared.win, compared.tie, compared.lose) == ("good", "poor", 12, 0, 0)
    assert compared.p == pytest.approx(2 / 2**12)
    assert results.judge.model == results.judge.reference_model == "judge"
    assert (results.judge.base_url, results.judge.malformed, results.judge.retried) == (server.base_url, 0, 0)
    assert [(m.name, m.source, m.kind) for m in results.models] == [
        ("good", "api:good", "api"),
        ("poor", "api:poor", "api"),
    ]
    assert results.sets[0].prompts == PROMPTS and not results.sets[0].has_teacher
    assert results.settings["length_unit"] == "words" and results.run is None


def test_files(evaluate, prompts, tmp_path):
    with FakeJudge(quality) as server:
        assert evaluate(server, prompts).status == 0
    out = tmp_path / "out"
    rows = read(out / "answers" / "vicuna" / "good.jsonl")
    assert [row["id"] for row in rows] == [f"id{i}" for i in range(PROMPTS)]
    assert rows[1] == {
        "id": "id1",
        "content": [{"role": "user", "content": "prompt 1"}],
        "category": "odd",
        "response": "good on prompt 1 quality=8",
        "finish_reason": "stop",
        "tokens": 3,
    }
    reference = read(out / "answers" / "vicuna" / "reference.jsonl")
    assert reference[3]["response"] == "judge on prompt 3 quality=5"
    verdicts = read(out / "verdicts.jsonl")
    assert len(verdicts) == 2 * PROMPTS
    assert all(v["score"] == quality(v["model"], f"prompt {v['id'][2:]}") for v in verdicts)
    assert all(v["reference_score"] == 5 and v["text"].endswith("\nbecause") for v in verdicts)
    # The order is drawn for a prompt, not for a model.
    orders = {(v["id"], v["model"]): v["order"] for v in verdicts}
    assert all(orders[f"id{i}", "good"] == orders[f"id{i}", "poor"] for i in range(PROMPTS))
    assert set(orders.values()) == {"reference first", "candidate first"}
    report = (out / "report.html").read_text()
    assert "good on prompt 3 quality=8" in report and "judge on prompt 3 quality=5" in report and "because" in report
    table = (out / "table.md").read_text()
    assert "| model | Vicuna |" in table
    score = read_results(out).scores["vicuna"]["good"].judge
    assert f"| good | {score.score:.1f} [{score.low:.1f}, {score.high:.1f}] |" in table
    assert "| Vicuna | good / poor | 12 / 0 / 0 | 0.000488 |" in table
    # The key is in no file.
    assert not any(KEY in file.read_text() for file in out.rglob("*") if file.is_file())
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_greedy_requests_and_the_estimate(evaluate, prompts):
    with FakeJudge(quality) as server:
        done = evaluate(
            server, prompts, "--max_response_length=100", "--input_price=2", "--output_price=8", "--judge_max_tokens=50"
        )
    assert all(request["temperature"] == 0 for request in server.requests)
    assert {r["max_tokens"] for r in server.requests} == {100, 50}
    said = " ".join(done.err.split())
    # A prompt of 8 or 9 characters: 2 or 3 tokens, and 4 of the template.
    for who in ("good answers", "reference answers by judge"):
        cost = f"at most about {(74 * 2 + 1200 * 8) / 1e6:.4g}"
        assert f"{who}: 12 requests, about 74 tokens of prompts, at most 1,200 of answers, cost {cost}" in said
    assert re.search(r"verdicts by judge: 24 requests, about [\d,]+ tokens of prompts, at most 1,200 of answers", said)


def test_models_and_a_judge_that_take_other_fields(evaluate, prompts):
    """The judge's flags are the reference model's too; where they are not given, the models' flags hold."""
    flags = ["--limit_field=max_completion_tokens", '--request_fields={"top_k": 1}', "--max_response_length=7"]
    with FakeJudge(quality) as server:
        assert evaluate(server, prompts, *flags, models="good=api:good").status == 0
        flags += ["--judge_limit_field=max_tokens", '--judge_request_fields={"temperature": null, "effort": "low"}']
        first = len(server.requests)
        assert evaluate(server, prompts, *flags, "--judge_max_tokens=9", models="good=api:good").status == 0
    shown = [{k: v for k, v in r.items() if k not in ("model", "messages", "top_p")} for r in server.requests]
    sent = {"temperature": 0, "top_k": 1}
    assert shown[: 2 * PROMPTS] == [sent | {"max_completion_tokens": 7}] * (2 * PROMPTS)
    assert shown[2 * PROMPTS : first] == [sent | {"max_completion_tokens": 1024}] * PROMPTS
    # The model's answers are known; the judge's reference answers are other ones.
    assert shown[first : first + PROMPTS] == [{"effort": "low", "max_tokens": 7}] * PROMPTS
    assert shown[first + PROMPTS :] == [{"effort": "low", "max_tokens": 9}] * PROMPTS


def test_nothing_is_asked_twice_and_what_changed_is(evaluate, prompts, tmp_path):
    with FakeJudge(quality) as server:
        assert evaluate(server, prompts).status == 0
        before = len(server.requests)
        assert before == 2 * PROMPTS + PROMPTS + 2 * PROMPTS
        again = evaluate(server, prompts)
        assert again.status == 0 and len(server.requests) == before
        # Another model: its answers and verdicts alone.
        assert evaluate(server, prompts, models="good=api:good,worse=api:worse").status == 0
        assert len(server.requests) == before + 2 * PROMPTS
        # A changed prompt: one answer of each model and of the reference, and two verdicts. Another order: none.
        rows = read(prompts)
        rows[4] |= {"prompt": "a new prompt 4"}
        prompts.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
        before = len(server.requests)
        assert evaluate(server, prompts).status == 0
        assert [r["messages"][-1]["content"] for r in server.requests[before:]].count("a new prompt 4") == 3
        assert len(server.requests) == before + 3 + 2


def test_the_teachers_answers(evaluate, prompts, tmp_path):
    """Overlap, and the teacher judged like a model; a refused row is not compared."""
    path = tmp_path / "t.jsonl"
    rows = [
        {"id": str(i), "prompt": f"prompt {i}", "teacher_response": f"teacher on prompt {i} quality=9"}
        for i in range(PROMPTS)
    ]
    rows[3] |= {"teacher_response": "I cannot", "finish_reason": "refusal"}
    rows[4] |= {"finish_reason": "length"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeJudge(quality) as server:
        done = evaluate(server, path, "--judge_teacher", models="poor=api:poor")
    assert done.status == 0, done.err
    results = read_results(tmp_path / "out")
    teacher, poor = (results.scores["vicuna"][name] for name in ("teacher", "poor"))
    assert (teacher.prompts, poor.prompts) == (PROMPTS - 1, PROMPTS)
    assert teacher.judge.score == pytest.approx(100 * 9 / 14) and teacher.judge.judged == PROMPTS - 1
    assert teacher.lengths.truncated == pytest.approx(1 / (PROMPTS - 1))
    assert teacher.rouge_l is None and teacher.ngram_f1 is None
    # "poor on prompt 5 quality 2" and "teacher on prompt 5 quality 9": four of six words, in order.
    assert poor.rouge_l == pytest.approx(4 / 6) and poor.ngram_f1["1"] == pytest.approx(4 / 6)
    assert poor.ngram_f1["4"] == pytest.approx(1 / 3)
    assert [row["id"] for row in read(tmp_path / "out/answers/vicuna/teacher.jsonl")] == [
        str(i) for i in range(PROMPTS) if i != 3
    ]
    assert results.sets[0].has_teacher
    assert any({c.a, c.b} == {"poor", "teacher"} for c in results.comparisons["vicuna"])
    assert "| teacher | 64.3 [64.3, 64.3] |" in (tmp_path / "out" / "table.md").read_text()
    assert "teacher on prompt 5" in (tmp_path / "out" / "report.html").read_text()
    # A set of the same name without a teacher and a judge: nothing of them stays.
    with FakeJudge(quality) as server:
        assert evaluate(server, prompts, "--judge=", models="poor=api:poor").status == 0
    assert [file.name for file in (tmp_path / "out/answers/vicuna").iterdir()] == ["poor.jsonl"]
    assert not (tmp_path / "out/verdicts.jsonl").exists()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "teacher on prompt 5" not in report and "judge on prompt 5" not in report


def start(repo, server, prompts, out):
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "COLUMNS": "200"}
    flags = ["--models=good=api:good,poor=api:poor", f"--sets=vicuna={prompts}", f"--out={out}", "--judge=judge"]
    return subprocess.Popen(
        [sys.executable, "-m", "gadjax.evaluate", *flags, f"--base_url={server.base_url}", "--concurrency=2"],
        cwd=repo,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kills_lose_nothing_that_was_paid(repo, tmp_path, prompts):
    """A kill in each phase: models' answers, reference answers, verdicts. At most requests under way are repeated."""
    out, total, kills = tmp_path / "out", 5 * PROMPTS, 0
    with FakeJudge(quality, seconds=0.03) as server:
        for stop_at in (8, 2 * PROMPTS + 4, 3 * PROMPTS + 8):
            process = start(repo, server, prompts, out)
            deadline = time.monotonic() + 60
            while len(server.requests) < stop_at and time.monotonic() < deadline:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            assert not (out / "results.json").exists()
        caches = [out / "cache" / name for name in ("api.jsonl", "verdicts.jsonl")]
        stored = [line for cache in caches for line in cache.read_text().splitlines(True) if line.endswith("\n")]
        assert 3 * PROMPTS <= len(stored) < total
        asked = len(server.requests)
        process = start(repo, server, prompts, out)
        _, err = process.communicate()
        assert process.returncode == 0, err
    # What was on the disk is not asked again: the last run asks for the rest.
    assert len(server.requests) - asked == total - len(stored)
    assert len(server.requests) - total <= 2 * kills
    judged = read_results(out).scores["vicuna"]["good"].judge
    assert judged.score == pytest.approx(100 * np.mean([8 / 13 if i % 4 else 0.5 for i in range(PROMPTS)]))


def test_api_models_alone_do_without_jax(repo, tmp_path, prompts):
    script = "import sys; from gadjax.evaluate import run; run(*eval(sys.argv[1])); assert 'jax' not in sys.modules"
    models = {"good": "api:good"}
    with FakeJudge(quality) as server:
        call = f"({models}, {{'v': {str(prompts)!r}}}, {str(tmp_path / 'o')!r})"
        script = script.replace("run(*eval(sys.argv[1]))", f"run(*eval(sys.argv[1]), base_url={server.base_url!r})")
        done = subprocess.run(
            [sys.executable, "-c", script, call], cwd=repo, capture_output=True, text=True, env=dict(os.environ)
        )
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "o")
    assert results.judge is None and results.verdicts is None and results.comparisons == {}


MISTAKES = [
    (["--models=x"], r"--models=x: expected NAME=VALUE"),
    (["--models=a=api:x,a=api:y"], "the name 'a' is there twice"),
    (["--models=teacher=api:x"], "--models: the name 'teacher' stands for the teacher's own answers"),
    (["--models=a/b=api:x"], "the name 'a/b' must begin with a letter"),
    (["--models=a=api:"], "the model's name is missing"),
    (["--models=a={tmp}@7"], "is not the workdir of a run; @STEP or @best names a checkpoint"),
    (["--models=a={tmp}/absent"], "absent: no such directory"),
    (["--sets=v={tmp}/absent.jsonl"], r"absent\.jsonl: no such file"),
    (["--sets=reference={tmp}/v.jsonl"], "--sets: the name 'reference' stands for"),
    (["--sets=v={tmp}/half.jsonl"], r"half\.jsonl:2: `teacher_response` is missing or empty"),
    (["--sets=v={tmp}/refused.jsonl"], "all of the teacher's answers are marked as no answer"),
    (["--references=dolly={tmp}/v.jsonl"], "--references names the set 'dolly', which is not among --sets"),
    (
        ["--references=vicuna={tmp}/half.jsonl"],
        r"half\.jsonl:2: `response` is missing or empty",
    ),
    (["--references=vicuna={tmp}/one.jsonl"], "has no answer to prompt 'id1' of the set"),
    (["--judge=", "--judge_teacher"], "--judge_teacher is of the judge, but there is none"),
    (["--judge=", "--reference_model=x"], "--reference_model is of the judge"),
    (["--judge_base_url=x"], "--judge_base_url=x: expected a URL"),
    (["--base_url=http://host:abc/v1"], "--base_url=http://host:abc/v1: "),
    (["--input_price=1"], "--output_price is missing; give it with the other price"),
    (["--input_price=1", "--output_price=-1"], r"--output_price=-1\.0: a number of at least 0"),
    (["--request_fields={"], "--request_fields: not JSON"),
    (['--request_fields={"x": NaN}'], "--request_fields: not JSON"),
    (['--judge_request_fields={"max_tokens": 3}'], "--judge_request_fields: max_tokens has a flag of its own"),
    (["--judge_limit_field=tokens"], "--judge_limit_field=tokens: one of max_tokens, max_completion_tokens"),
    (["--judge=", '--judge_request_fields={"x": 1}'], "--judge_request_fields is of the judge"),
    (["--max_response_length=0"], "--max_response_length=0: a number of at least 1"),
    (["--judge_attempts=0"], "--judge_attempts=0: a number of at least 1"),
    (["--teacher_temperature=0"], r"--teacher_temperature=0\.0: a number above 0"),
    (["--judge_temperature=-1"], r"--judge_temperature=-1\.0: a number of at least 0"),
    (["--dtype=float16"], "--dtype=float16: one of auto, float32, bfloat16"),
    (["--kl_forward=other"], "--kl_forward=other: one of drawn, given"),
    (["--base={tmp}"], "--base is of the two-sample test, but no set of --sets has the teacher's answers"),
    (["--teacher={tmp}", "--kl_forward=given"], "--kl_forward=given: the set vicuna has no teacher's answers"),
    (["--two_sample_folds=1"], "--two_sample_folds=1: a number of at least 2"),
    (["--surplus=1"], "Unknown command line flag"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes(evaluate, prompts, tmp_path, flags, message):
    """A mistake is one line, before anything is asked or written."""
    (tmp_path / "half.jsonl").write_text('{"prompt": "a", "teacher_response": "b"}\n{"prompt": "c"}\n')
    refused = {"prompt": "a", "teacher_response": "no", "finish_reason": "refusal"}
    (tmp_path / "refused.jsonl").write_text(json.dumps(refused))
    (tmp_path / "one.jsonl").write_text('{"id": "id0", "prompt": "a", "response": "b"}')
    with FakeJudge(quality) as server:
        done = evaluate(server, prompts, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    errors = [line for line in done.err.splitlines() if line]
    assert done.status == 2 and len(errors) == 1, done.err
    assert errors[0].startswith("error: ") and re.search(message, errors[0]), errors[0]
    assert not server.requests and not (tmp_path / "out").exists()


def test_without_a_key_for_openai(command, prompts, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = command("gadjax.evaluate", "--models=a=api:gpt", f"--sets=v={prompts}", f"--out={tmp_path / 'o'}")
    assert done.status == 2 and "OPENAI_API_KEY is not set" in done.err
