"""What blind.html holds: which pairs, in which order, under which disguise; test_blind_page.py clicks through it."""

import hashlib
import html.parser
import json
from collections import Counter

import pytest

from gadjax.evaluation import blind
from gadjax.evaluation.blind import Sheet, choose, fingerprint, model_key, pairs_to_ask
from tests.evaluation import written_evaluation as written

pytestmark = pytest.mark.quick
MODELS = ("a", "b", "c")


def sheets(count=30, models=MODELS, sets=("x",)):
    """Prompts whose answers all differ."""
    content = [{"role": "user", "content": "q"}]
    return [Sheet(name, f"p{n}", content, {m: f"{m} {n}" for m in models}) for name in sets for n in range(count)]


def pair(question):
    return frozenset((question.left, question.right))


def test_the_pairs_are_those_of_the_judge():
    assert pairs_to_ask(MODELS, teacher=False) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs_to_ask(("a", "b"), teacher=True) == [("a", "b"), ("a", "teacher"), ("b", "teacher")]
    assert pairs_to_ask(("a",), teacher=False) == [("a", "teacher")]  # else there is nothing to compare


def test_every_prompt_comes_once_before_one_comes_again_and_pairs_are_even():
    pairs = pairs_to_ask(MODELS, teacher=False)
    questions = choose(sheets(), pairs, 1000)
    assert len({(q.sheet.id, pair(q)) for q in questions}) == len(questions) == 90
    for start in (0, 30, 60):
        assert len({q.sheet.id for q in questions[start : start + 30]}) == 30
    for count in (15, 30, 45, 90):  # whoever stops early has voted on all pairs alike
        assert set(Counter(map(pair, questions[:count])).values()) == {count // 3}


def test_the_limit_takes_the_first_and_changes_nothing_else():
    pairs = pairs_to_ask(MODELS, teacher=False)
    assert choose(sheets(), pairs, 40) == choose(sheets(), pairs, 1000)[:40]


def test_sets_are_mixed():
    questions = choose(sheets(sets=("x", "y")), [("a", "b")], 20)
    assert 5 <= sum(q.sheet.prompt_set == "x" for q in questions) <= 15


def test_sides_are_even_and_do_not_depend_on_the_order_of_models():
    questions = choose(sheets(200), [("a", "b")], 200)
    assert 75 <= sum(q.left == "a" for q in questions) <= 125
    assert [q.left for q in choose(sheets(200), [("b", "a")], 200)] == [q.left for q in questions]


def test_the_order_is_that_of_a_hash_of_the_answers():
    """Written out, so that another machine, or another version, gives the same page."""
    (one,) = sheets(1, ("a", "b"))
    row = {"a": "a 0", "b": "b 0"}
    text = json.dumps(["x", "p0", [{"content": "q", "role": "user"}], row], sort_keys=True)
    print_ = hashlib.sha256(json.dumps(text).encode()).hexdigest()[:16]
    assert fingerprint([one]) == print_
    drawn = hashlib.sha256(f'"{print_}"\n"x"\n"p0"\n"a"\n"b"'.encode()).hexdigest()
    (question,) = choose([one], [("a", "b")], 1)
    assert question.left == ("a" if int(drawn[-1], 16) % 2 else "b")
    assert model_key(print_, "a") == hashlib.sha256(f'"{print_}"\n"a"'.encode()).hexdigest()[:12]


def test_the_fingerprint_is_of_the_answers():
    rows = sheets(3)
    assert fingerprint(rows) == fingerprint(rows[::-1])
    assert fingerprint([row._replace(answers=dict(reversed(row.answers.items()))) for row in rows]) == fingerprint(rows)
    changed = rows[0]._replace(answers={**rows[0].answers, "a": "other"})
    renamed = [row._replace(answers={m.replace("a", "z"): text for m, text in row.answers.items()}) for row in rows]
    found = {fingerprint(rows), fingerprint([changed, *rows[1:]]), fingerprint(renamed), fingerprint(rows[1:])}
    assert len(found) == 4


def test_equal_and_missing_answers_are_not_asked_about():
    same, other, missing = sheets(3)
    same = same._replace(answers={"a": "yes\n", "b": "yes"})
    missing = missing._replace(answers={"a": "yes"})
    assert [q.sheet.id for q in choose([same, other, missing], [("a", "b")], 9)] == [other.id]


class _Text(html.parser.HTMLParser):
    """The text of the element whose id is "data"."""

    data, inside = "", False

    def handle_starttag(self, tag, attrs):
        self.inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.data += data


def test_the_page_names_no_model(tmp_path):
    """But for what the answers themselves say."""
    written.write(tmp_path)
    names = ("before", "GAD", "teacher")
    for name in written.SETS:
        for who in names:
            path = tmp_path / "answers" / name / f"{who}.jsonl"
            path.write_text(path.read_text().replace(f"{who} says", f"{len(who)} says"))
    found = blind.read_sheets(tmp_path, written.SETS, written.MODELS)
    assert len(found) == 6 and set(found[0].answers) == set(names)
    assert blind.write_blind(tmp_path, found, pairs_to_ask(written.MODELS, teacher=True), 200)
    page = (tmp_path / "blind.html").read_text()
    assert not any(name in page for name in ("GAD", "/models/base", "/runs/one"))
    parser = _Text()
    parser.feed(page)
    assert "before" not in parser.data and "teacher" not in parser.data
    data = json.loads(parser.data)
    keys = {model_key(data["fingerprint"], name): str(len(name)) for name in names}
    assert len(data["questions"]) == 18
    for question in data["questions"]:
        for side in ("left", "right"):
            answer = question[side]
            assert answer["text"].split()[0] == keys[answer["model"]]


def test_without_anything_to_compare_there_is_no_page(tmp_path):
    rows = sheets(2)
    assert blind.write_blind(tmp_path, rows, [("a", "b")], 5) and (tmp_path / "blind.html").exists()
    assert not blind.write_blind(tmp_path, rows, [("a", "teacher")], 5)
    assert not (tmp_path / "blind.html").exists()  # that of the evaluation before
