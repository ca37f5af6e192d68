"""The verdict in words: who is better by how much, or that nothing can be told."""

import pytest

from gadjax.evaluation.human import score_votes
from gadjax.evaluation.report_verdict import findings
from gadjax.evaluation.votes import Vote

pytestmark = pytest.mark.quick
NOTHING = dict.fromkeys(("judge", "two_sample", "kl"))


def judge(score, low, high, judged=40):
    return {"judge": {"score": score, "low": low, "high": high, "judged": judged}}


def pair(a, b, difference, low, high, prompts=40):
    known = {"difference": difference, "low": low, "high": high}
    return {"a": a, "b": b, "win": prompts, "tie": 0, "lose": 0} | known


def results(scores, pairs=(), prompts=40):
    rows = {name: {"prompts": prompts} | NOTHING | found for name, found in scores.items()}
    models = [{"name": name} for name in scores if name != "teacher"]
    return {"models": models, "sets": [{"name": "s"}], "scores": {"s": rows}, "comparisons": {"s": list(pairs)}}


def said(*arguments, votes=None):
    return [(one.title, " ".join(one.sentences)) for one in findings(results(*arguments), votes)]


def test_the_judges_best_against_every_other():
    """The leader is named first, whichever way the pair was compared."""
    scores = {"a": judge(40, 35, 45), "b": judge(48, 44, 52), "c": judge(47.5, 43, 52)}
    pairs = [pair("a", "b", -8.04, -12, -4.1), pair("a", "c", -7, -9, -5), pair("b", "c", 0.5, -1, 2)]
    assert said(scores, pairs) == [
        (
            "Judge on s",
            "b is better than a by 8.0 points (95 % interval 4.1 to 12.0). "
            "Nothing can be told between b and c: 0.5 points (95 % interval −1.0 to 2.0).",
        )
    ]


def test_few_prompts_tell_nothing():
    scores = {"a": judge(40, 35, 45), "b": judge(48, 47, 52)}
    for prompts, word in ((9, "Nothing can be told between b and a"), (10, "b is better than a by 8.0")):
        ((_, text),) = said(scores, [pair("a", "b", -8, -12, -4, prompts)])
        assert text.startswith(word) and ("9 prompts are too few" in text) == (prompts == 9)


def test_files_without_differences_need_intervals_apart():
    """As those of earlier versions."""
    scores = {"a": judge(40, 35, 43), "b": judge(48, 44, 52), "c": judge(46, 42, 50)}
    pairs = [pair(a, b, None, None, None) for a, b in (("a", "b"), ("a", "c"), ("b", "c"))]
    ((_, text),) = said(scores, pairs)
    assert text == (
        "b is better than a: 48.0 (44.0 to 52.0) against 40.0 (35.0 to 43.0). "
        "Nothing can be told between b and c: 48.0 (44.0 to 52.0) and 46.0 (42.0 to 50.0), intervals that overlap."
    )


def test_less_is_better_in_the_other_measures():
    def kl(reverse, forward):
        figures = {}
        for name, value in (("reverse_per_token", reverse), ("forward_per_token", forward)):
            figures |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
        return {"kl": figures}

    def test(value, prompts=40):
        return {"two_sample": {"accuracy": value, "low": value - 0.05, "high": value + 0.05, "prompts": prompts}}

    found = dict(said({"a": kl(1, 2) | test(0.9), "b": kl(0.5, 2.1) | test(0.6), "teacher": {}}))
    assert found["Reverse KL on s"].startswith(
        "b is closer to the teacher than a: 0.500 (0.400 to 0.600) against 1.000"
    )
    assert found["Forward KL on s"].startswith("Nothing can be told between a and b: 2.000")
    assert found["Two-sample test on s"].startswith("b is harder to tell from the teacher than a: 0.600")
    few = dict(said({"a": test(0.9, 5), "b": test(0.6, 5)}))
    assert few["Two-sample test on s"].endswith("and 5 prompts are too few.")


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (judge(40, 35, 45), "a is worse than the reference answers: 40.0 (35.0 to 45.0), where 50 is parity."),
        (judge(60, 55, 65), "a is better than the reference answers: 60.0 (55.0 to 65.0), where 50 is parity."),
        (judge(50, 45, 55), "Nothing can be told of a: 50.0 (45.0 to 55.0), where 50 is parity."),
        (
            judge(60, 55, 65, 1),
            "Nothing can be told of a: 60.0 (55.0 to 65.0), where 50 is parity, and 1 prompt is too few.",
        ),
        (
            {"two_sample": {"accuracy": 0.8, "low": 0.7, "high": 0.9, "prompts": 20}},
            "a can be told from the teacher: 0.800 (0.700 to 0.900), where 0.5 is parity.",
        ),
    ],
    ids=["worse", "better", "even", "few", "two-sample"],
)
def test_a_single_model_is_held_against_parity(figure, text):
    assert [sentence for _, sentence in said({"a": figure})] == [text]


def test_people_come_first_and_over_all_sets():
    better = [*"aaaaaaaaaaab", None]
    cast = [Vote("Ann", name, str(n), "b", "a", one) for name in "st" for n, one in enumerate(better)]
    votes = score_votes(cast, "", {})
    margin = votes.comparisons[-1].margin
    found = said({"a": judge(50, 45, 55), "b": judge(50, 45, 55)}, votes=votes)
    assert [title for title, _ in found] == ["People", "Judge on s"]
    text = f"by 77 % of votes, wins minus losses (95 % interval {-100 * margin.high:.0f} to {-100 * margin.low:.0f})."
    assert found[0][1] == f"a is preferred to b {text}"


def test_without_measures_there_is_nothing_to_say():
    assert said({"a": {}, "b": {}, "teacher": {}}) == []
