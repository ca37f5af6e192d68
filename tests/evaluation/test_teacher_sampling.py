"""How a file says that the teacher's answers were sampled, and what that allows."""

from __future__ import annotations

import json

import pytest

from gadjax.errors import UserError
from gadjax.evaluation.prompt_sets import TeacherSampling, common_temperature, other_temperatures, sampling_of

FLAG = "--kl_forward=given: the set s"


def of(*rows: dict) -> TeacherSampling:
    return sampling_of([(f"t.jsonl:{number}", row) for number, row in enumerate(rows, start=1)])


def test_values_with_the_first_row_that_has_them():
    found = of({"temperature": 0.7, "top_p": 1}, {}, {"temperature": 0.7, "system": ""}, {"temperature": 1})
    assert found.values == {"temperature": {0.7: "t.jsonl:1", 1.0: "t.jsonl:4"}, "top_p": {1.0: "t.jsonl:1"}}


def test_tfds_has_float32_and_a_negative_number_for_none():
    assert of({"temperature": 0.699999988079071, "top_p": -1.0}).values == {"temperature": {0.7: "t.jsonl:1"}}


@pytest.mark.parametrize(
    "fields", ['{"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "reasoning_effort": "low"}', {"top_k": 0}, "{}"]
)
def test_answers_of_the_whole_distribution(fields):
    found = of({"temperature": 0.7, "top_p": 1.0, "system": None, "request_fields": fields})
    found.check(FLAG, 0.7)
    found.check(FLAG, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"top_p": 0.9}, r"collected with top_p < 1, whose KL is infinite \(t\.jsonl:2\); use drawn"),
        ({"system": "Be brief."}, r"collected with a system prompt, 'Be brief\.' \(t\.jsonl:2\), which the models are"),
        ({"request_fields": '{"top_k": 20}'}, r"collected with top_k=20 \(t\.jsonl:2\)"),
        ({"request_fields": {"min_p": 0.05}}, r"collected with min_p=0\.05 \(t\.jsonl:2\)"),
        ({"request_fields": '{"presence_penalty": 1.5}'}, r"collected with presence_penalty=1\.5 \(t\.jsonl:2\)"),
        ({"request_fields": '{"repetition_penalty": 0}'}, r"collected with repetition_penalty=0 \(t\.jsonl:2\)"),
        ({"request_fields": "[1]"}, r"t\.jsonl:2: `request_fields` is list; expected a JSON object"),
        ({"request_fields": "{"}, r"t\.jsonl:2: `request_fields` is not JSON"),
        (
            {"temperature": 1.0},
            r"at several temperatures, 0\.7 \(t\.jsonl:1\) and 1 \(t\.jsonl:2\), but a KL is of one",
        ),
    ],
)
def test_other_answers_have_no_kl(row, message):
    found = of({"temperature": 0.7}, row)
    for temperature in (0.7, None):
        with pytest.raises(UserError, match=message) as error:
            found.check(FLAG, temperature)
        assert "\n" not in str(error.value)


def test_another_temperature_than_the_flags():
    message = r"the set s was collected at temperature 0\.7; give it as --teacher_temperature \(t\.jsonl:1\)"
    with pytest.raises(UserError, match=message):
        of({"temperature": 0.7}).check(FLAG, 1.0)


@pytest.mark.parametrize("row", [{"system": 3}, {"request_fields": 3}])
def test_what_is_no_text(row):
    (name,) = row
    with pytest.raises(UserError, match=rf"t\.jsonl:1: `{name}` is int; expected text"):
        of(row)


def test_the_one_temperature_of_all_sets():
    known, unknown, other = of({"temperature": 0.7}), of(json.loads("{}")), of({"temperature": 0})
    assert common_temperature({"a": unknown, "b": known, "c": known}, "--x") == 0.7
    assert common_temperature({"a": unknown}, "--x") == 1.0
    message = (
        r"--x is missing: .* at several temperatures, 0 \(b, t\.jsonl:1\) and 0\.7 \(a, t\.jsonl:1\); give the one that"
    )
    with pytest.raises(UserError, match=message):
        common_temperature({"a": known, "b": other}, "--x")


def test_sets_that_a_flag_contradicts():
    sets = {"a": of({"temperature": 0.7}), "b": of({}), "c": of({"temperature": 1.0})}
    assert other_temperatures(sets, 1.0, "--x") == [
        "warning: --x=1, but the set a was collected at 0.7 (t.jsonl:1)",
    ]
