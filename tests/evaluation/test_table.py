"""The tables of table.md and of the terminal equal the expected ones, to the letter."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from gadjax.evaluation import results as schema
from gadjax.evaluation.table import markdown, print_scores, write_table

LENGTHS = schema.Lengths(3.5, 3.0, 7.0, 0.25, schema.Histogram([0.0, 8.0], [4]))
PLAIN = schema.Scores(4, LENGTHS, {"1": 0.5, "2": 0.75, "3": 1.0}, None, None, None, None, None)


def full(score: float) -> schema.Scores:
    return dataclasses.replace(
        PLAIN,
        rouge_l=0.25,
        ngram_f1={str(n): 0.1 * n for n in range(1, 6)},
        judge=schema.JudgeScore(score, score - 2, score + 2, 4, 0),
        two_sample=schema.TwoSampleScore(0.6, 0.55, 0.7, 4),
    )


def results(**fields) -> schema.Results:
    values = dict(
        format=1,
        gadjax="0",
        created="",
        models=[
            schema.EvaluatedModel("before", "a", "export", None, None),
            schema.EvaluatedModel("gad", "b", "export", None, None),
        ],
        sets=[schema.EvaluatedSet(name, "", 4, "", True) for name in ("lmsys", "mine")],
        settings={"length_unit": "tokens", "two_sample_temperature": 0.7},
        judge=schema.Judge("gpt-4o", "http://x", "gpt-4o", 0, 0),
        scores={
            "lmsys": {"before": full(45.8), "gad": full(48.9), "teacher": PLAIN},
            "mine": {"before": full(44), "gad": PLAIN, "teacher": PLAIN},
        },
        comparisons={"lmsys": [schema.Comparison("before", "gad", 1, 0, 3, 0.625, "sign test")]},
        verdicts=None,
        run=None,
    )
    return schema.Results(**(values | fields))


def test_the_tables(tmp_path):
    text = write_table(tmp_path, results()).read_text()
    table2 = """
| model | LMSYS | mine |
| --- | ---: | ---: |
| before | 45.8 [43.8, 47.8] | 44.0 [42.0, 46.0] |
| gad | 48.9 [46.9, 50.9] | – |
"""
    assert table2 in text
    assert "| before | 60.0 [55.0, 70.0] | 60.0 [55.0, 70.0] |" in text
    assert "classifiers, cross-validated, on answers drawn at temperature 0.7; 50 is indistinguishable" in text
    assert "LMSYS, 4 prompts:" in text
    columns = (
        "ROUGE-L | 1-gram F1 | 2-gram F1 | 3-gram F1 | 4-gram F1 | 5-gram F1 | distinct-1 | distinct-2 | distinct-3"
    )
    assert f"| model | {columns} | length (tokens) | p95 | cut |\n" in text
    numbers = "0.250 | 0.100 | 0.200 | 0.300 | 0.400 | 0.500 | 0.500 | 0.750 | 1.000 | 3.5 | 7 | 25.0 %"
    assert f"| gad | {numbers} |\n" in text
    assert f"| teacher | {' | '.join(['–'] * 6)} | 0.500 | 0.750 | 1.000 | 3.5 | 7 | 25.0 % |\n" in text
    assert "| LMSYS | before / gad | 1 / 0 / 3 | 0.625 |" in text and "(sign test):" in text


def test_kls():
    kl = schema.Kl(-1e-9, *(0.5 * i for i in range(1, 12)), 4, "drawn", "/t", 0.7)
    scores = {name: {"before": dataclasses.replace(PLAIN, kl=kl), "gad": PLAIN} for name in ("lmsys", "mine")}
    text = markdown(results(scores=scores, judge=None, comparisons={}))
    assert "| reverse KL a token | reverse KL a response | forward KL a token | forward KL a response |" in text
    assert "| 0.000 [0.500, 1.000] | 1.500 [2.000, 2.500] | 3.000 [3.500, 4.000] | 4.500 [5.000, 5.500] |" in text
    assert "LMSYS, 4 prompts, KLs between the models at temperature 1 and the teacher at 0.7:\n" in text
    assert "Judge score" not in text and "Two-sample" not in text and "ROUGE" not in text


def test_the_best_of_several():
    found = results(scores={"lmsys": {"gad": PLAIN}, "mine": {"gad": PLAIN}}, judge=None, comparisons={})
    found.models[1] = schema.EvaluatedModel("gad", "b", "export", None, None, schema.BestOf(8, 1.0, "/d", "score"))
    said = "gad: the best of 8 draws at temperature 1, by the discriminator /d of kind score"
    assert markdown(found).splitlines()[0] == said
    assert said in printed(found)


def printed(of: schema.Results) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    print_scores(console, of)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_terminal():
    kl = schema.Kl(1.5, 1.4, 1.7, 50, 45, 55, 0.25, 0.2, 0.3, 9, 8, 10, 1, "drawn", "t", 0.7)
    gad = dataclasses.replace(full(48.9), kl=kl)
    of_set = {"before": full(45.8), "gad": gad, "teacher": PLAIN}
    found = results(scores={"lmsys": of_set, "mine": {"before": PLAIN, "[b]": PLAIN}})
    found.models.append(schema.EvaluatedModel("[b]", "c", "export", None, None))
    assert printed(found) == [
        "",
        "LMSYS, 4 prompts",
        "model         judge  two-sample  ROUGE-L  length     reverse KL     forward KL",
        "before   45.8 ± 2.0  60.0 ± 7.5    0.250     3.5              –              –",
        "gad      48.9 ± 2.0  60.0 ± 7.5    0.250     3.5  1.500 ± 0.150  0.250 ± 0.050",
        "teacher           –           –        –     3.5              –              –",
        "",
        "mine, 4 prompts",
        "model   length",
        "before     3.5",
        "[b]        3.5",
        "judge: 100 · mean(s / (s + s_ref)), 50 is parity with the reference",
        "two-sample: accuracy in % at temperature 0.7, 50 is indistinguishable",
        "length: mean, in tokens",
        "reverse KL: nats a token, the teacher at temperature 0.7; forward KL alike",
        "±: half of the 95 % interval",
        "",
    ]
