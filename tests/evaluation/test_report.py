"""The HTML report as a file: whole, self-contained, escaped, and plain about what it lacks."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import subprocess
import sys

import pytest

from gadjax.errors import UserError
from gadjax.evaluation import report_answers
from gadjax.evaluation.human import score_votes
from gadjax.evaluation.report import write_report
from gadjax.evaluation.votes import Vote
from tests.evaluation import written_evaluation as written

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "image": "<img src=x onerror=alert(2)>",
    "comment": "<!--<script>",
    "entity": "&lt;b&gt; &amp;",
    "separators": "a\u2028b\u2029c",
    "surrogate": "half \ud83d of a pair",
    "null": "a\0b",
    "override": "abc\u202egnp.exe",
}


class _Page(html.parser.HTMLParser):
    """A page's elements with their attributes, its text, and the text of scripts and styles."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem:
            self.raw.append((*self.elements[-1], data))
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self):
        return json.loads("".join(text for _, attrs, text in self.raw if attrs.get("id") == "data"))

    def ids(self) -> set[str | None]:
        return {attrs.get("id") for _, attrs in self.elements}


@pytest.fixture
def page(tmp_path):
    written.write(tmp_path / "e", run=tmp_path / "run")
    return _Page(write_report(tmp_path / "e").read_text("utf-8"))


def test_it_holds_every_section(page):
    assert {"scores", "comparisons", "lengths", "run", "answers", "about", "data"} <= page.ids()
    labels = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    assert all(labels)
    for title in ("Judge score on tea: before 18.0; GAD 48.0", "Two-sample accuracy on maths", "Reverse KL on tea"):
        assert any(title in label for label in labels), title
    for curve in ("Negative log-likelihood", "Two-sample accuracy"):
        assert any(label.startswith(f"{curve} by step") for label in labels), curve
    assert "GAD wins 2, ties 0, loses 1 against before" in labels
    assert "0.042" in page.text and "sign test" in page.text
    assert "48.0 (44.0 to 52.0)" in page.text  # a figure with its interval
    assert "new/figure" not in page.text  # TensorBoard has the rest of the figures


def test_it_asks_for_nothing_from_anywhere(page):
    addresses = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href", "action", "data")
    ]
    assert all(value.startswith("#") or value == "data:," for value in addresses), addresses
    styles = [text for tag, _, text in page.raw if tag == "style"]
    assert not any(re.search(r"url\(|@import|@font-face", text) for text in styles)
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_its_policy_allows_its_own_script_and_style_alone(page):
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for tag in ("script", "style"):
        sources = [text for name, attrs, text in page.raw if name == tag and attrs.get("type") != "application/json"]
        assert len(sources) == 1
        digest = base64.b64encode(hashlib.sha256(sources[0].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_it_names_no_password_and_no_folder_of_a_set(tmp_path):
    written.write(tmp_path)
    text = write_report(tmp_path).read_text("utf-8")
    assert "judge.example" in text
    assert "hunter2" not in text and "/sets/" not in text


def test_answers_stand_side_by_side_with_marks(page):
    data = page.data
    assert [column["name"] for column in data["columns"]][:4] == ["teacher", "reference", "before", "GAD"]
    row = next(row for row in data["rows"] if row["id"] == "maths-1")
    assert data["sets"][row["set"]] == "maths" and row["category"] == "odd"
    assert row["prompt"] == [["user", "maths question 1"]]
    gad = row["answers"]["3"]
    assert gad["text"] == "GAD says maths 1" and gad["cut"] and gad["tokens"] == 11
    assert (gad["mark"], gad["reference"], gad["verdict"]) == (6, 5, "verdict on GAD 1")
    assert gad["score"] == pytest.approx(100 * 6 / 11, abs=0.01)
    assert "score" not in row["answers"]["0"]


def test_verdicts_of_one_answer_are_averaged_and_malformed_ones_are_not_marks(tmp_path):
    results = written.write(tmp_path)
    verdict = {"set": "tea", "id": "tea-0", "model": "GAD", "order": "ab", "text": ""}
    marks = [(9, 3), (3, 3), (None, None)]
    written.write_rows(
        tmp_path / "verdicts.jsonl", [verdict | {"score": own, "reference_score": other} for own, other in marks]
    )
    answer = report_answers.read_answers(tmp_path, results)["rows"][0]["answers"][3]
    assert (answer["score"], answer["mark"], answer["reference"]) == (62.5, 6, 3)


def test_the_run_shows_the_last_sample_of_each_stage(page):
    data = page.data
    row = data["rows"][-1]
    names = {data["columns"][int(n)]["name"]: answer["text"] for n, answer in row["answers"].items()}
    assert names == {"teacher": "t", "before (run)": "before 0", "SeqKD (run)": "seqkd 30", "GAD (run)": "gad 40"}


def test_the_run_shows_its_warnings(tmp_path):
    written.write(tmp_path / "e", run=tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    row = {"kind": "warning", "stage": "gad", "watchdog": "kl", "since": 33, "seen": "<b>KL</b> is 0.7"}
    begins = row | {"step": 36, "state": "begins", "advice": "lower config.gad.x"}
    rows = [
        begins,
        row | {"step": 38, "state": "ends", "advice": ""},
        begins | {"step": 40, "since": 1039, "seen": "it is back"},
    ]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(tmp_path / "e").read_text("utf-8")
    section = text[text.index('id="warnings-title"') : text.index("Negative log-likelihood by step")]
    assert section.count('<tr><th scope="row">kl</th><td>GAD</td>') == 2
    assert "33 to 38" in section and "from 1,039 on" in section
    assert "&lt;b&gt;KL&lt;/b&gt; is 0.7" in section and "lower config.gad.x" in section
    assert ">watchdog</span>" not in text and "since by step" not in text  # no curves of their fields


def test_a_run_that_measured_nothing_shows_its_warnings(tmp_path):
    """And figures that were not finite are counted, not passed over."""
    written.write(tmp_path / "e", run=tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    warning = {"kind": "warning", "stage": "gad", "watchdog": "kl", "since": 33, "seen": "the KL is 0.7"}
    rows.append(warning | {"step": 36, "state": "begins", "advice": "lower config.gad.x"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["kind"] != "heldout"))
    text = write_report(tmp_path / "e").read_text("utf-8")
    assert "the KL is 0.7" in text and "no figures of held-out prompts, so there are no curves" in text
    measured = next(row for row in rows if row["kind"] == "heldout")
    measured |= {"heldout/nll": None, "nonfinite": {"heldout/nll": "nan"}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "1 of them was not finite, and left out" in write_report(tmp_path / "e").read_text("utf-8")


def test_a_run_without_warnings_shows_none(page):
    assert "warnings-title" not in page.ids()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_of_a_model_becomes_markup(tmp_path, text):
    results = written.write(tmp_path)
    written.write_rows(
        tmp_path / "answers" / "tea" / "GAD.jsonl",
        [{"id": text, "content": [{"role": text, "content": text}], "response": text, "category": text}],
    )
    written.write_rows(
        tmp_path / "verdicts.jsonl",
        [{"set": "tea", "id": text, "model": "GAD", "score": 1, "reference_score": 1, "text": text}],
    )
    plain = _shape(write_report(tmp_path))
    page = _Page((tmp_path / "report.html").read_text("utf-8"))
    row = next(row for row in page.data["rows"] if row["id"] == text)
    (answer,) = row["answers"].values()
    assert answer["text"] == answer["verdict"] == row["category"] == text
    # Names in the page's own text too; gadjax.evaluate cannot write a lone surrogate to results.json.
    if not re.search("[\0/\ud800-\udfff]", text):
        results["models"][0]["source"] = results["settings"]["note"] = results["comparisons"]["tea"][0]["test"] = text
        written.save(tmp_path, results)
        shape = _shape(write_report(tmp_path))
        assert sorted(shape) == sorted([*plain, "dt", "dd"])


def test_a_voters_name_is_no_markup(tmp_path):
    cast = [Vote(HOSTILE["image"], "tea", f"tea-{n}", *written.MODELS, "GAD") for n in range(3)]
    results = written.write(tmp_path)
    written.save(tmp_path, results | {"votes": dataclasses.asdict(score_votes(cast, "", {}))})
    page = _Page(write_report(tmp_path).read_text("utf-8"))
    assert {"votes", "verdict"} <= page.ids() and f"{HOSTILE['image']} 3." in page.text
    assert not any(tag == "img" for tag, _ in page.elements)
    assert "Nothing can be told between GAD and before: 100 % of votes" in page.text  # of 3 prompts


def _shape(path) -> list[str]:
    return [tag for tag, _ in _Page(path.read_text("utf-8")).elements]


def test_a_huge_answer_is_held_in_part_with_its_length_stated(tmp_path):
    written.write(tmp_path)
    answer = {"id": "tea-0", "content": [{"role": "user", "content": "q"}], "response": "word " * 2_000_000}
    written.write_rows(tmp_path / "answers" / "tea" / "GAD.jsonl", [answer])
    path = write_report(tmp_path)
    assert path.stat().st_size < 300_000
    text, length = _Page(path.read_text("utf-8")).data["rows"][0]["answers"]["3"]["text"]
    assert length == 10_000_000 and text == "word " * 4000


def test_what_was_not_measured_is_left_out_and_said(tmp_path):
    results = written.write(tmp_path)
    for by_model in results["scores"].values():
        by_model.pop("teacher")
        for scores in by_model.values():
            scores.update(judge=None, two_sample=None, kl=None, rouge_l=None, ngram_f1=None)
    for part in results["sets"]:
        part["has_teacher"] = False
    results |= {"judge": None, "comparisons": {}, "verdicts": None, "run": None}
    written.save(tmp_path, results)
    page = _Page(write_report(tmp_path).read_text("utf-8"))
    for words in ("No judge", "No two-sample test", "No KL", "No answers of a teacher", "names no run"):
        assert words in page.text
    assert "comparisons" not in page.ids() and {"lengths", "answers"} <= page.ids()
    labels = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    assert labels and all(label.startswith("Lengths of") for label in labels)


def test_an_evaluation_of_nothing_is_a_page(tmp_path):
    empty = {"models": [], "sets": [], "scores": {}, "comparisons": {}, "judge": None, "verdicts": None}
    written.save(tmp_path / "e", written.write(tmp_path / "other") | empty)
    tmp_path /= "e"
    page = _Page(write_report(tmp_path).read_text("utf-8"))
    assert "holds no scores" in page.text and "There are no answers" in page.text and "data" not in page.ids()


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_lengths_are_in_their_unit(tmp_path, unit):
    results = written.write(tmp_path)
    written.save(tmp_path, results | {"settings": results["settings"] | {"length_unit": unit}})
    text = write_report(tmp_path).read_text()
    other = {"words": "tokens", "tokens": "words"}[unit]
    assert f">{unit} in an answer<" in text and f">{other} in an answer<" not in text
    assert f"median 11 {unit}, " in text and f"median 11 {other}, " not in text
    assert f">{unit}, mean<" in text and f">{other}, mean<" not in text
    assert f" {unit}: 3 answers<" in text and f" {other}: 3 answers<" not in text


def test_a_run_that_has_gone_is_said(tmp_path):
    written.write(tmp_path / "e", run=tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    text = _Page(write_report(tmp_path / "e").read_text("utf-8")).text
    assert "metrics.jsonl is no longer in run" in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); run gadjax.evaluate --out="),
        ("{", "not JSON"),
        ('{"format": 2}', "its format is 2, but this gadjax reads 1; evaluate again"),
        ('{"format": 1, "models": []}', "`gadjax` is missing; evaluate again"),
    ],
)
def test_bad_results_are_named(tmp_path, content, message):
    """The messages are those of `read_results`."""
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        write_report(tmp_path)
    assert "results.json" in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_bad_row_of_answers_is_named(tmp_path):
    written.write(tmp_path)
    path = tmp_path / "answers" / "tea" / "GAD.jsonl"
    path.write_text('{"id": "tea-0", "content": []}\n')
    with pytest.raises(UserError, match=r"GAD\.jsonl:1: no `response`"):
        write_report(tmp_path)


def test_drawing_needs_no_large_library(tmp_path, repo):
    written.write(tmp_path)
    script = (
        "import pathlib, sys; from gadjax.evaluation.report import write_report; "
        "write_report(pathlib.Path(sys.argv[1])); "
        "assert not {'tensorflow', 'torch', 'matplotlib', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=repo, check=True)
