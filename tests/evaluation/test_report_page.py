"""The HTML report in a real browser: what a person does with it, and that nothing a model wrote runs."""

import shutil

import pytest

from gadjax.evaluation.report import write_report
from tests.evaluation import browser
from tests.evaluation import written_evaluation as written
from tests.evaluation.test_report import HOSTILE

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"no headless browser: none of {', '.join(browser.NAMES)}")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with browser.open_browser(PROGRAM, profile) as page:
        yield page
    shutil.rmtree(profile, ignore_errors=True)  # the browser's last processes may still write there


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    written.write(folder / "e", run=folder / "run")
    return write_report(folder / "e")


@pytest.fixture
def page(tab, report):
    tab.open(report)
    yield tab
    assert tab.complaints == []
    assert tab.requests == [report.resolve().as_uri()]


def where(page):
    return page.evaluate("document.getElementById('where').innerText")


def answers(page):
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.card')].map("
        "c => [c.querySelector('.who').textContent, c.querySelector('.words').textContent]))"
    )


def choose(page, name, value):
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def search(page, words):
    page.evaluate(
        f"new Promise(done => {{ const q = document.getElementById('query'); q.value = '{words}';"
        "q.dispatchEvent(new Event('input', {bubbles: true})); setTimeout(done, 300); })"
    )


def count(page):
    return page.evaluate("document.getElementById('count').textContent")


def test_next_and_previous(page):
    assert where(page).startswith("1 of 7 tea")
    assert answers(page)["GAD"] == "GAD says tea 0"
    assert page.evaluate("document.getElementById('previous').disabled")
    page.evaluate("document.getElementById('next').click()")
    assert where(page).startswith("2 of 7") and answers(page)["teacher"] == "teacher says tea 1"
    page.key("j")
    assert where(page).startswith("3 of 7")
    page.key("k")
    assert where(page).startswith("2 of 7")
    for _ in range(9):
        page.key("j")
    assert where(page).startswith("7 of 7") and page.evaluate("document.getElementById('next').disabled")
    assert answers(page)["SeqKD (run)"] == "seqkd 30"


def test_search_finds_words_of_prompts_and_of_answers(page):
    search(page, "MATHS  question 2")
    assert count(page) == "1 of 7 prompts" and where(page).startswith("1 of 1 maths")
    assert page.evaluate("document.querySelector('#prompt mark').textContent") == "maths question 2"
    search(page, "gad says tea")
    assert count(page) == "3 of 7 prompts"
    search(page, "(-/[")  # words, not a pattern
    assert count(page) == "0 of 7 prompts" and page.evaluate("!document.getElementById('nothing').hidden")
    page.evaluate("new Promise(done => { document.getElementById('clear').click(); setTimeout(done, 100); })")
    assert count(page) == "7 prompts"


def test_keys_typed_in_the_search_are_words(page):
    page.key("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.key("j")
    assert page.evaluate("document.getElementById('query').value") == "j" and where(page).startswith("1 of")


def test_filters_and_order(page):
    choose(page, "set", 1)
    assert count(page) == "3 of 7 prompts" and where(page).startswith("1 of 3 maths")
    choose(page, "category", "odd")
    assert count(page) == "1 of 7 prompts" and answers(page)["GAD"] == "GAD says maths 1"
    choose(page, "category", "")
    choose(page, "cut", "some")
    assert count(page) == "1 of 7 prompts"
    choose(page, "cut", "none")
    assert count(page) == "2 of 7 prompts"
    choose(page, "cut", "")
    choose(page, "order", "judge")
    assert answers(page)["GAD"] == "GAD says maths 2"  # 7 : 5 against 3 : 5


def test_models_can_be_hidden(page):
    assert list(answers(page)) == ["teacher", "reference", "before", "GAD"]
    page.evaluate("document.querySelectorAll('#columns input')[1].click()")
    assert list(answers(page)) == ["teacher", "before", "GAD"]


def test_no_text_of_a_model_runs(tab, tmp_path):
    written.write(tmp_path)
    rows = [
        {"id": f"{name} {text}", "content": [{"role": "user", "content": text}], "response": text, "category": text}
        for name, text in HOSTILE.items()
    ]
    written.write_rows(tmp_path / "answers" / "tea" / "GAD.jsonl", rows)
    path = write_report(tmp_path)
    tab.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.ran = true; };")
    tab.open(path)
    search(tab, "")
    shown = []
    for _ in range(written.PROMPTS * 2 + len(rows)):
        shown.append(answers(tab).get("GAD"))
        tab.key("j")
    seen = {"surrogate": "half U+D83D of a pair", "null": "aU+0000b", "override": "abcU+202Egnp.exe"}
    for name, text in HOSTILE.items():
        assert seen.get(name, text) in shown, name
    assert tab.evaluate("window.ran") is None
    assert tab.evaluate("document.querySelectorAll('main img, main iframe, main object').length") == 0
    assert tab.evaluate("document.scripts.length") == 2
    assert tab.complaints == [] and tab.requests == [path.resolve().as_uri()]


def test_a_script_that_got_in_would_not_run(page):
    """The policy is a second defence: the page refuses a script that was not in its file."""
    page.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = true';"
        "document.body.append(s); })()"
    )
    assert page.evaluate("window.ran") is None
    assert len(page.complaints) == 1 and "Content Security Policy" in page.complaints.pop()


def test_a_huge_answer_is_cut_with_its_length_stated(tab, tmp_path):
    written.write(tmp_path)
    row = {"id": "tea-0", "content": [{"role": "user", "content": "q"}], "response": "word " * 2_000_000}
    written.write_rows(tmp_path / "answers" / "tea" / "GAD.jsonl", [row])
    tab.open(write_report(tmp_path))
    card = "[...document.querySelectorAll('.card')].at(-1)"
    assert len(answers(tab)["GAD"]) == 3000
    tab.evaluate(f"{card}.querySelector('button.more').click()")
    assert len(answers(tab)["GAD"]) == 20_000
    assert "the first 20,000 of 10,000,000 characters" in tab.evaluate(f"{card}.textContent")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    try:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def sized(page, width):
    """The page at a width."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hint(page, section):
    """Whether the hint below a section's last wide table is seen."""
    seen = "[...document.querySelectorAll('#{} .hint')].at(-1).checkVisibility()"
    return page.evaluate(seen.format(section))


def test_rows_of_comparisons_are_low_on_a_phone(page):
    try:
        sized(page, 400)
        heights = page.evaluate(
            "[...document.querySelectorAll('#comparisons tbody tr')].map(row => row.getBoundingClientRect().height)"
        )
        assert len(heights) == 2 and max(heights) < 50
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_a_wide_table_says_that_it_goes_on_until_its_end(page):
    """All figures at 1400 pixels; the comparisons fit there, and not at 400."""
    try:
        sized(page, 1400)
        assert hint(page, "scores") and not hint(page, "comparisons")
        assert "linear-gradient" in page.evaluate(
            "getComputedStyle(document.querySelector('#scores .scroll')).background"
        )
        scroll = "document.querySelector('#scores .scroll').scrollLeft = {}"
        page.evaluate(scroll.format(9999))
        page.evaluate("new Promise(done => setTimeout(done, 100))")
        assert not hint(page, "scores")
        page.evaluate(scroll.format(0))
        sized(page, 400)
        assert hint(page, "scores") and hint(page, "comparisons")
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_five_hundred_prompts_by_six_models_stay_quick(tab, tmp_path):
    models = [f"model {n}" for n in range(6)]
    for model in models:
        rows = [
            {"id": str(n), "content": [{"role": "user", "content": f"prompt {n}"}], "response": f"{n} word " * 200}
            for n in range(500)
        ]
        written.write_rows(tmp_path / "answers" / "s" / f"{model}.jsonl", rows)
    results = written.write(tmp_path / "other")
    results |= {"models": [results["models"][0] | {"name": model} for model in models], "comparisons": {}}
    results |= {"sets": [results["sets"][0] | {"name": "s"}], "scores": {"s": dict.fromkeys(models, written.plain())}}
    written.save(tmp_path, results)
    tab.open(write_report(tmp_path))
    assert tab.evaluate("document.querySelectorAll('*').length") < 1000
    search(tab, "499 word")
    assert count(tab) == "1 of 500 prompts" and len(answers(tab)) == 6
    assert tab.complaints == []
