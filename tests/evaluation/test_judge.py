"""The judge's question, its verdicts and the score."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadjax.evaluation.judge import (
    CANDIDATE_FIRST,
    REFERENCE_FIRST,
    MalformedVerdict,
    Verdict,
    judge_score,
    order_of,
    parse_scores,
    question,
    read_verdict,
)

CHAT = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 9", (8, 9)),
        ("8, 9", (8, 9)),
        ("8,9", (8, 9)),
        ("8.5 7\nBecause 3 4.", (8.5, 7)),
        ("\n \n 10\t1 \r\nAssistant 1 ...", (10, 1)),
        ("Scores: 8 9", (8, 9)),
        ("score: 8, 9\n", (8, 9)),
        ("**8 9**\n\nwhy", (8, 9)),
        ("`7 7`", (7, 7)),
        ("8 9.", (8, 9)),
        ("1.0 10.0", (1, 10)),
    ],
)
def test_verdicts_that_are_read(text, scores):
    assert parse_scores(text) == scores


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "8",
        "8 9 10",
        "8/10 9/10",
        "8/9",
        "0 5",
        "11 5",
        "10.5 5",
        "-8 9",
        "8 to 9",
        "Assistant 1: 8\nAssistant 2: 9",
        "Both are good.\n8 9",
        "eight nine",
        "nan nan",
        "inf 1",
        "1e1 5",
        "٨ ٩",  # digits of another script, which float() would take
        "8²9",
        "89",
    ],
)
def test_verdicts_that_are_malformed(text):
    with pytest.raises(MalformedVerdict):
        parse_scores(text)


@given(st.one_of(st.text(), st.from_regex(r"\A[0-9., *`:/score\n-]{0,16}\Z")))
def test_no_text_does_anything_else(text):
    """Two scores from 1 to 10, each as a number of the first line that is not blank; or the one declared error."""
    try:
        scores = parse_scores(text)
    except MalformedVerdict:
        return
    assert all(1 <= score <= 10 for score in scores)
    first = next(line for line in text.splitlines() if line.strip())
    assert [float(number) for number in re.findall(r"[0-9.]*[0-9]", first)] == list(scores)


def test_the_order_decides_whose_score_is_whose():
    assert read_verdict("8 9\n", REFERENCE_FIRST) == Verdict(score=9, reference_score=8)
    assert read_verdict("8 9\n", CANDIDATE_FIRST) == Verdict(score=8, reference_score=9)


def test_the_question():
    (system, user) = question(CHAT, "the reference", "the candidate", REFERENCE_FIRST)
    assert system["role"] == "system" and user["role"] == "user"
    pattern = r"\[Question\]\nWhy is the sky blue\?\n\n.*Start of Assistant 1's Answer\]\nthe reference\n\n.*End of "
    pattern += r"Assistant 1's.*Start of Assistant 2's Answer\]\nthe candidate\n\n.*\[System\]\n.*helpfulness"
    assert re.match(pattern, user["content"], re.DOTALL)
    swapped = question(CHAT, "the candidate", "the reference", CANDIDATE_FIRST)
    assert swapped == [system, user]


def test_a_longer_chat_is_shown_whole():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        *CHAT,
    ]
    text = question(chat, "r", "c", REFERENCE_FIRST)[1]["content"]
    assert "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: Why is the sky blue?\n\n" in text


def test_the_order_is_a_fair_coin_that_seed_set_and_prompt_decide():
    drawn = [order_of(seed, "vicuna", str(i)) for seed in range(4) for i in range(1000)]
    assert drawn == [order_of(seed, "vicuna", str(i)) for seed in range(4) for i in range(1000)]
    assert abs(drawn.count(REFERENCE_FIRST) / 4000 - 0.5) < 0.04  # five standard deviations
    for others in (
        [order_of(9, "vicuna", str(i)) for i in range(1000)],
        [order_of(0, "dolly", str(i)) for i in range(1000)],
    ):
        assert 350 < sum(a == b for a, b in zip(drawn[:1000], others, strict=True)) < 650


def test_the_score_is_the_papers():
    verdicts = [Verdict(8, 8), Verdict(5, 10), Verdict(9, 3)]
    score = judge_score(verdicts, malformed=2)
    assert score.score == pytest.approx(100 * np.mean([8 / 16, 5 / 15, 9 / 12]))
    assert (score.judged, score.malformed) == (3, 2)
    assert 100 / 3 - 1e-9 <= score.low < score.score < score.high <= 75 + 1e-9
    assert judge_score([], malformed=2) is None
    same = judge_score([Verdict(7, 7)] * 5, malformed=0)
    assert (same.score, same.low, same.high) == (50, 50, 50)
