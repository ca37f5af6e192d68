"""The paper's claims are judged by their sign, and a direction whose interval holds 0 is not called settled."""

from __future__ import annotations

import pytest

from benchmarks.evidence.paper import Claim, _verdict, judge
from benchmarks.evidence.toy import MODES, gad, seqkd, teacher

CLAIM = Claim("a is nearer", "a", "b", "reverse_kl_response", -1)


def rows(a: list[float], b: list[float]) -> list[dict]:
    arms = {"a": a, "b": b}
    return [
        {"arm": arm, "seed": seed, "updates": 1, "reverse_kl_response": value, "length_ratio": 1.2}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def test_a_claim_holds_if_the_difference_has_its_sign():
    (found,) = judge([CLAIM], rows([1.0, 1.1, 1.0], [2.0, 2.1, 2.1]))
    assert found["same"] and found["mean"] == pytest.approx(-1.0333, abs=1e-3) and _verdict(found)[1] == "yes"
    (found,) = judge([CLAIM], rows([2.0, 2.1, 2.1], [1.0, 1.1, 1.0]))
    assert not found["same"] and _verdict(found)[1] == "no"


def test_a_direction_within_the_noise_is_not_settled():
    (found,) = judge([CLAIM], rows([1.0, 2.0, 0.0], [1.1, 1.0, 1.5]))
    assert found["low"] < 0 < found["high"] and _verdict(found)[1].endswith("not settled")
    (found,) = judge([CLAIM], rows([1.0], [2.0]))
    assert found["low"] is None and _verdict(found) == ("–", "yes, one seed")


def test_a_claim_whose_arms_did_not_run_is_left_out():
    assert judge([CLAIM], [row for row in rows([1.0], [2.0]) if row["arm"] == "a"]) == []


def test_lengths_are_compared_by_their_distance_from_the_teachers():
    measured = rows([1.0], [1.0])
    measured[0]["length_ratio"], measured[1]["length_ratio"] = 0.5, 1.4
    (found,) = judge([Claim("runs away", "a", "b", "length_gap", +1)], measured)
    assert found["mean"] == pytest.approx(0.1) and found["same"]


def test_in_the_toy_seqkd_stands_between_the_modes_and_gad_on_one():
    assert teacher().sum() == pytest.approx(1) and teacher()[[int(mode) for mode in MODES]].min() > 0.15
    covers, seeks = seqkd(1), gad(1)
    assert covers.off_mode > 1.5 and seeks.off_mode < 0.3
    assert seeks.reverse_kl < covers.reverse_kl and covers.forward_kl < seeks.forward_kl
