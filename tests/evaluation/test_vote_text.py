"""People's votes as text."""

import pytest

from gadjax.evaluation.human import score_votes
from gadjax.evaluation.vote_results import Interval
from gadjax.evaluation.vote_text import percent, vote_cells, vote_rows, vote_sentences
from gadjax.evaluation.votes import Vote

pytestmark = pytest.mark.quick


def cast(voter, better, name="s"):
    return [Vote(voter, name, str(n), "a", "b", one) for n, one in enumerate(better)]


def test_percents():
    assert percent(Interval(0.125, -0.001, 0.5)) == ("12 %", "0 to 50")
    assert percent(Interval(-0.3, -0.456, 1.0)) == ("−30 %", "−46 to 100")


def test_a_row_for_each_set_and_one_for_all():
    votes = score_votes(cast("Ann", "aa") + cast("Ann", "aa", "t"), "", {})
    titles, cells = vote_cells(vote_rows(votes))
    assert titles == ["set", "models", "votes", "prompts", "win", "tie", "lose", "win − lose", "p"]
    whole, none = "100 % [100, 100]", "0 % [0, 0]"
    assert cells == [
        ["s", "a / b", "2", "2", whole, none, none, whole, "0.500"],
        ["t", "a / b", "2", "2", whole, none, none, whole, "0.500"],
        ["all sets", "a / b", "4", "4", whole, none, none, whole, "0.125"],
    ]


def test_what_is_said_of_one_and_of_several_people():
    (one,) = vote_sentences(score_votes(cast("Ann", "a"), "", {}))
    assert one == "1 vote of 1 person, who did not see the models' names: Ann 1."
    _, same = vote_sentences(score_votes(cast("Ann", "aa") + cast("Bob", "aa"), "", {}))
    assert "equal in 100 % (100 to 100) of 2 pairs of votes on 2 pairs of answers" in same
    assert same.endswith("is not defined, since all votes are equal.")
    _, other = vote_sentences(score_votes(cast("Ann", "a") + cast("Bob", "b"), "", {}))
    assert "equal in 0 % (0 to 0) of 1 pair of votes" in other and other.endswith("is 0.00.")
    _, apart = vote_sentences(score_votes(cast("Ann", "a") + cast("Bob", "a", "t"), "", {}))
    assert apart.startswith("No two people voted on the same answers")


def test_what_is_said_of_the_judge():
    shares = {("s", "a"): {"0": 0.6, "1": 0.5}, ("s", "b"): {"0": 0.4, "1": 0.5}}
    _, decided = vote_sentences(score_votes(cast("Ann", ["a", "b"]), "", shares))
    assert decided == (
        "The judge agrees with 50 % (0 to 100) of 2 votes (a guess: a third); without ties of either, with "
        "100 % (100 to 100) of 1 (a guess: half)."
    )
    _, ties = vote_sentences(score_votes(cast("Ann", [None]), "", shares))
    assert ties == "The judge agrees with 0 % (0 to 0) of 1 votes (a guess: a third)."
