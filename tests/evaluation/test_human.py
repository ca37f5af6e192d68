"""Scores of people's votes by hand, and votes through the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gadjax.evaluation import blind, statistics
from gadjax.evaluation.human import score_votes
from gadjax.evaluation.results import read_results
from gadjax.evaluation.votes import Vote
from tests.evaluation.api_evaluation import PROMPTS, evaluator, quality, write_prompts
from tests.evaluation.fake_judge import FakeJudge


def votes(voter: str, said: str, name: str = "s", pair: tuple[str, str] = ("a", "b")) -> list[Vote]:
    """A person's votes on prompts 0, 1, ...: "a" and "b" are better, "-" is a tie, "." no vote."""
    better = {pair[0]: pair[0], pair[1]: pair[1], "-": None}
    return [Vote(voter, name, str(n), *pair, better[one]) for n, one in enumerate(said) if one != "."]


def test_shares_by_hand():
    found = score_votes(votes("Ann", "aa-b") + votes("Bob", "ab-."), "print", {})
    (one,) = found.comparisons
    assert (one.prompt_set, one.a, one.b, one.win, one.tie, one.lose, one.prompts) == ("s", "a", "b", 3, 2, 2, 4)
    shares = [one.win_share.value, one.tie_share.value, one.lose_share.value, one.margin.value]
    assert shares == pytest.approx([3 / 7, 2 / 7, 2 / 7, 1 / 7])
    assert one.p == 1.0  # one prompt for each, and two that are even
    assert [(voter.name, voter.votes) for voter in found.voters] == [("Ann", 4), ("Bob", 3)]
    assert found.judge is None and found.fingerprint == "print"


def test_intervals_are_over_prompts():
    """Ten people who all agree on four prompts are not forty prompts."""
    one = score_votes([vote for n in range(10) for vote in votes(str(n), "aaab")], "", {}).comparisons[0]
    alone = score_votes(votes("Ann", "aaab"), "", {}).comparisons[0]
    assert (one.win_share.low, one.win_share.high) == (alone.win_share.low, alone.win_share.high)
    assert one.p == alone.p == statistics.sign_test(3, 1)
    # And they are the bootstrap's of a ratio of sums: wins over votes.
    uneven = score_votes(votes("Ann", "ab-aab") + votes("Bob", "a..ab."), "", {}).comparisons[0]
    expected = statistics.ratio_of_means(np.array([2, 0, 0, 2, 1, 0]), np.array([2, 1, 1, 2, 2, 1]))
    assert (uneven.win_share.value, uneven.win_share.low, uneven.win_share.high) == pytest.approx(tuple(expected))


def test_sets_and_pairs_are_apart_and_sets_together_too():
    given = votes("Ann", "aa", "s") + votes("Ann", "b", "t") + votes("Ann", "c", "s", ("a", "c"))
    found = score_votes(given, "", {}).comparisons
    assert [(one.prompt_set, one.a, one.b, one.win, one.lose, one.prompts) for one in found] == [
        ("s", "a", "b", 2, 0, 2),
        ("s", "a", "c", 0, 1, 1),
        ("t", "a", "b", 0, 1, 1),
        (None, "a", "b", 2, 1, 3),  # prompt 0 of s is not prompt 0 of t
        (None, "a", "c", 0, 1, 1),
    ]


def test_agreement_between_people_by_hand():
    """Three on prompt 0 (one of three pairs equal), two on prompt 1 (equal); prompt 2 has one vote."""
    found = score_votes(votes("Ann", "ab-") + votes("Bob", "ab") + votes("Cy", "b"), "", {}).agreement
    assert (found.share.value, found.pairs, found.questions) == (pytest.approx(2 / 4), 4, 2)
    # Values a a b | b b: D_o = (4 / 2 + 0) / 5, D_e = 2 · 2 · 3 / (5 · 4).
    assert found.alpha == pytest.approx(1 - (2 / 5) / (12 / 20))


def test_pairs_of_models_are_other_questions():
    """Votes on a prompt's other pair are not compared with these."""
    found = score_votes(votes("Ann", "a") + votes("Bob", "a", pair=("a", "c")), "", {})
    assert found.agreement is None
    assert score_votes(votes("Ann", "a"), "", {}).agreement is None


def test_the_judge_agrees_by_hand():
    """The judge: a, b, tie, a; nothing on prompt 4."""
    shares = {("s", "a"): dict(zip("0123", (0.6, 0.4, 0.5, 0.6), strict=True))}
    shares["s", "b"] = dict(zip("01234", (0.5, 0.5, 0.5, 0.5, 0.5), strict=True))
    found = score_votes(votes("Ann", "aa-ba") + votes("Bob", "-b"), "", shares).judge
    assert (found.votes, found.share.value) == (6, pytest.approx(3 / 6))  # a, tie and Bob's b
    assert (found.decided, found.decided_share.value) == (4, pytest.approx(2 / 4))
    other = score_votes(votes("Ann", "a", "t"), "", shares).judge
    assert other is None
    ties = score_votes(votes("Ann", "-"), "", shares).judge
    assert (ties.share.value, ties.decided, ties.decided_share) == (0.0, 0, None)


@pytest.fixture
def evaluate(command, tmp_path, monkeypatch):
    return evaluator(command, tmp_path / "out", monkeypatch)


def vote_on(out, prompts: int, choose) -> dict:
    """Ann's file of votes, as blind.html saves it; `choose` says "good", "poor" or "tie" by the prompt's number."""
    sheets = blind.read_sheets(out, ["vicuna"], ["good", "poor"])
    print_ = blind.fingerprint(sheets)
    rows = []
    for sheet, left, right in blind.choose(sheets, [("good", "poor")], prompts):
        vote = {left: "left", right: "right", "tie": "tie"}[choose(int(sheet.id[2:]))]
        keys = {"left": blind.model_key(print_, left), "right": blind.model_key(print_, right)}
        rows.append({"set": "vicuna", "id": sheet.id, **keys, "vote": vote})
    return {"format": 1, "voter": "Ann", "fingerprint": print_, "votes": rows}


def test_votes_through_the_command(evaluate, tmp_path):
    """People prefer the good one on nine of twelve prompts, and the judge on all."""
    prompts, out = write_prompts(tmp_path / "v.jsonl"), tmp_path / "out"
    with FakeJudge(quality) as server:
        done = evaluate(server, prompts)
        assert done.status == 0, done.err
        assert f"blind comparison by people: {out}/blind.html" in done.out
        first = server.requests[:]
        ann = vote_on(out, PROMPTS, lambda n: "good" if n < 9 else "poor")
        bob = vote_on(out, PROMPTS, lambda n: "good" if n < 6 else "tie")
        (tmp_path / "ann.json").write_text(json.dumps(ann))
        (tmp_path / "bob.json").write_text(json.dumps(bob | {"voter": "Bob"}))
        page = (out / "blind.html").read_text()
        done = evaluate(server, prompts, f"--votes={tmp_path}/ann.json,{tmp_path}/bob.json")
        assert done.status == 0, done.err
        assert server.requests == first  # nothing was asked anew
        # The same with another seed, and fewer questions: the answers are the same.
        again = evaluate(server, prompts, f"--votes={tmp_path}/ann.json", "--blind_pairs=3", "--max_retries=0")
        assert again.status == 0, again.err
        renamed = {**ann, "fingerprint": "0" * 16}
        (tmp_path / "ann.json").write_text(json.dumps(renamed))
        refused = evaluate(server, prompts, f"--votes={tmp_path}/ann.json")
        assert server.requests == first
    assert "\nVicuna  good / poor     24" in done.out and "all of it: " in done.out.splitlines()[-1]
    assert "2 people" in done.out.replace("\n", " ")
    assert refused.status == 2 and "ann.json: vote 1 is on a pair of models that this evaluation lacks" in refused.err
    found = read_results(out).votes
    assert [voter.name for voter in found.voters] == ["Ann"]  # the last evaluation
    assert (out / "blind.html").read_text() != page
    assert (
        "| Vicuna | good / poor | 12 | 12 | 75 % [50, 100] | 0 % [0, 0] | 25 % [0, 50] |"
        in (out / "table.md").read_text()
    )
    report = (out / "report.html").read_text()
    assert "12 votes of 1 person" in report and "The judge agrees with 75 % (50 to 100) of 12 votes" in report


def test_votes_on_answers_that_have_changed_are_refused_before_the_judge_is_asked(evaluate, tmp_path):
    prompts, out = write_prompts(tmp_path / "v.jsonl"), tmp_path / "out"
    with FakeJudge(quality) as server:
        assert evaluate(server, prompts).status == 0
    (tmp_path / "ann.json").write_text(json.dumps(vote_on(out, PROMPTS, lambda n: "tie")))
    with FakeJudge(lambda model, prompt: quality(model, prompt) + 0.5) as server:
        for file in (out / "cache").glob("*.jsonl"):
            file.unlink()
        done = evaluate(server, prompts, f"--votes={tmp_path}/ann.json")
        assert done.status == 2 and "ann.json: its votes are on the answers of another evaluation, or they" in done.err
        assert server.verdicts() == []
