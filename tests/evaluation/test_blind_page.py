"""blind.html in a real browser: votes by keys and buttons, what the browser keeps, files saved and loaded."""

import json
import pathlib
import shutil
import time

import pytest

from gadjax.evaluation import blind, votes
from tests.evaluation import browser
from tests.evaluation import written_evaluation as written
from tests.evaluation.test_report import HOSTILE

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"no headless browser: none of {', '.join(browser.NAMES)}")
QUESTIONS = written.PROMPTS * len(written.SETS)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with browser.open_browser(PROGRAM, profile) as page:
        yield page
    shutil.rmtree(profile, ignore_errors=True)  # the browser's last processes may still write there


def write(folder: pathlib.Path, models=written.MODELS) -> pathlib.Path:
    """A folder's blind.html."""
    sheets = blind.read_sheets(folder, written.SETS, models)
    assert blind.write_blind(folder, sheets, blind.pairs_to_ask(models, teacher=False), 200)
    return folder / blind.FILE


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blind")
    written.write(folder)
    return write(folder)


@pytest.fixture
def page(tab, path, tmp_path):
    tab.open(path)
    tab.evaluate("localStorage.clear()")
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.open(path)
    yield tab
    assert tab.complaints == []
    assert [one for one in tab.requests if not one.startswith("blob:")] == [path.resolve().as_uri()]


def where(page):
    return page.evaluate("document.querySelector('.summary').innerText")


def texts(page):
    """The prompt, and the answers 1 and 2."""
    return page.evaluate("[...document.querySelectorAll('#question .words')].map(one => one.textContent)")


def pressed(page):
    return page.evaluate("document.querySelector('.vote[aria-pressed=true]')?.textContent ?? null")


def message(page):
    return page.evaluate("document.getElementById('message').textContent")


def click(page, name):
    page.evaluate(f"document.querySelector({json.dumps(name)}).click()")


def write_name(page, name):
    page.evaluate("document.getElementById('voter').focus()")
    page.call("Input.insertText", text=name)


def save(page, folder: pathlib.Path) -> pathlib.Path:
    """The file that the page saves."""
    click(page, "#save")
    deadline = time.monotonic() + 20
    while not (found := list(folder.glob("votes-*.json"))):
        assert time.monotonic() < deadline, message(page)
        page.evaluate("new Promise(done => setTimeout(done, 50))")
    return found[0]


def load(page, file: pathlib.Path) -> None:
    """Chooses a file, as a person does in the browser's dialogue."""
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])
    page.evaluate("new Promise(done => setTimeout(done, 200))")


def test_keys_vote_and_go_back(page):
    assert where(page) == f"1 of {QUESTIONS} · 0 votes"
    first = texts(page)
    assert first[0].endswith(first[1][-1])  # the answers are to the prompt that is shown
    assert {text.split()[0] for text in first[1:]} == set(written.MODELS)
    page.key("1")
    assert where(page) == f"2 of {QUESTIONS} · 1 vote" and texts(page) != first and pressed(page) is None
    page.key("2")
    page.key("0")
    assert where(page) == f"4 of {QUESTIONS} · 3 votes"
    page.key("Backspace")
    assert pressed(page) == "Tie"
    page.key("ArrowLeft")
    assert pressed(page) == "2 is better"
    page.key("ArrowLeft")
    assert pressed(page) == "1 is better" and texts(page) == first
    page.key("ArrowLeft")  # there is none before the first
    assert where(page) == f"1 of {QUESTIONS} · 3 votes"
    page.key("0")  # another mind
    page.key("ArrowLeft")
    assert pressed(page) == "Tie" and where(page) == f"1 of {QUESTIONS} · 3 votes"


def test_buttons_do_what_keys_do(page):
    click(page, "[data-vote=right]")
    click(page, "#on")
    click(page, "[data-vote=tie]")
    assert where(page) == f"4 of {QUESTIONS} · 2 votes"
    click(page, "#back")
    assert pressed(page) == "Tie"
    for _ in range(2):
        click(page, "#back")
    assert pressed(page) == "2 is better" and page.evaluate("document.getElementById('back').disabled")


def test_the_end_says_what_is_left(page, path):
    page.key("ArrowRight")
    for _ in range(QUESTIONS + 1):  # one more than there are
        page.key("1")
    assert where(page) == f"the end · {QUESTIONS - 1} votes"
    end = "document.getElementById('end').innerText"
    assert f"1 of {QUESTIONS} pairs have no vote." in page.evaluate(end)
    page.open(path)
    assert where(page).startswith(f"1 of {QUESTIONS}")  # the one without
    page.key("2")
    for _ in range(QUESTIONS):
        page.key("ArrowRight")
    assert "Every pair has a vote." in page.evaluate(end)


def test_a_name_is_typed_and_no_vote(page):
    write_name(page, "Ann")
    page.key("1")
    page.key("0")
    assert page.evaluate("document.getElementById('voter').value") == "Ann10"
    assert where(page) == f"1 of {QUESTIONS} · 0 votes"


def test_modified_keys_are_the_browsers(page):
    """Ctrl-1 and Ctrl-0 are another tab, and the zoom."""
    for key in ("1", "0"):
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=2)
        page.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=2)
    assert where(page) == f"1 of {QUESTIONS} · 0 votes"


def test_a_reload_keeps_votes_and_name(page, path):
    write_name(page, "Ann")
    page.evaluate("document.activeElement.blur()")
    for key in "120":
        page.key(key)
    page.open(path)
    assert where(page) == f"4 of {QUESTIONS} · 3 votes"
    assert page.evaluate("document.getElementById('voter').value") == "Ann"


def test_votes_of_another_evaluation_are_apart(page, path, tmp_path):
    page.key("1")
    written.write(tmp_path / "other")
    answers = tmp_path / "other" / "answers" / "tea" / "GAD.jsonl"
    answers.write_text(answers.read_text().replace("says", "said"))
    page.open(write(tmp_path / "other"))
    assert where(page) == f"1 of {QUESTIONS} · 0 votes"
    page.open(path)
    assert where(page) == f"2 of {QUESTIONS} · 1 vote"


def test_the_saved_file_is_read_with_the_models_names(page, tmp_path):
    """GAD is better on every second question, by whichever side it stands on; the rest are ties."""
    expected = {}
    for number in range(QUESTIONS):
        prompt, left, right = texts(page)
        assert {left.split()[0], right.split()[0]} == {"GAD", "before"}
        better = None if number % 2 else "GAD"
        expected[prompt] = better
        page.key("0" if better is None else "1" if left.startswith("GAD") else "2")
    click(page, "#save")
    assert message(page).startswith("Write your name first")
    write_name(page, "Ann Ô'Neill")
    file = save(page, tmp_path)
    assert file.name == "votes-Ann-Ô-Neill.json" and message(page) == f"Saved as {file.name}."
    assert not any(model in file.read_text() for model in written.MODELS)
    prompts = {name: [f"{name}-{n}" for n in range(written.PROMPTS)] for name in written.SETS}
    found = votes.resolve(votes.read_votes([file]), prompts, written.MODELS)
    assert {one.voter for one in found} == {"Ann Ô'Neill"}
    assert {f"{one.prompt_set} question {one.id[-1]}": one.better for one in found} == expected


def test_loading_a_saved_file_goes_on(page, path, tmp_path):
    write_name(page, "Ann")
    page.evaluate("document.activeElement.blur()")
    page.key("1")
    page.key("0")
    file = save(page, tmp_path)
    page.evaluate("localStorage.clear()")
    page.open(path)
    assert where(page) == f"1 of {QUESTIONS} · 0 votes"
    load(page, file)
    assert where(page) == f"3 of {QUESTIONS} · 2 votes" and message(page) == "Loaded 2 votes of Ann."
    assert page.evaluate("document.getElementById('voter').value") == "Ann"
    page.key("ArrowLeft")
    assert pressed(page) == "Tie"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no file of votes"),
        ('{"format": 2}', "is no file of votes"),
        ('{"format": 1, "voter": "A", "fingerprint": "x", "votes": []}', "on the answers of another evaluation"),
        ('{"format": 1, "voter": "A", "fingerprint": "OURS", "votes": [{"vote": "left"}]}', "is damaged"),
    ],
)
def test_a_wrong_file_is_refused_and_votes_stay(page, path, tmp_path, content, said):
    ours = blind.fingerprint(blind.read_sheets(path.parent, written.SETS, written.MODELS))
    (tmp_path / "f.json").write_text(content.replace("OURS", ours))
    page.key("1")
    load(page, tmp_path / "f.json")
    assert said in message(page) and message(page).startswith("f.json ")
    assert where(page) == f"2 of {QUESTIONS} · 1 vote"


@pytest.mark.parametrize("answer", [True, False])
def test_another_persons_file_replaces_votes_only_if_told_so(page, path, tmp_path, answer):
    write_name(page, "Ann")
    page.evaluate("document.activeElement.blur()")
    page.key("1")
    file = save(page, tmp_path)
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {"voter": "Bob", "votes": [value["votes"][0] | {"vote": "tie"}]}))
    page.evaluate(f"window.confirm = (text) => {{ window.asked = text; return {json.dumps(answer)}; }}")
    load(page, file)
    assert page.evaluate("window.asked") == "Replace the 1 votes of Ann with those of Bob?"
    assert page.evaluate("document.getElementById('voter').value") == ("Bob" if answer else "Ann")
    page.key("ArrowLeft")
    assert pressed(page) == ("Tie" if answer else "1 is better")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page, width, scheme):
    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        boxes = "[...document.querySelectorAll('.votes button')].map(one => one.getBoundingClientRect())"
        assert page.evaluate(f"{boxes}.every(b => b.height >= 44 && b.left >= 0 && b.right <= innerWidth)")
        assert page.evaluate(f"{boxes}.every(b => b.bottom <= innerHeight)")  # in reach without scrolling
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 251)"
        assert light == (scheme == "light")
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
        page.call("Emulation.setEmulatedMedia", features=[])


def test_no_text_of_a_model_runs(tab, tmp_path):
    written.write(tmp_path)
    rows = [
        {"id": f"{name} {text}", "content": [{"role": "user", "content": text}], "response": text}
        for name, text in HOSTILE.items()
    ]
    written.write_rows(tmp_path / "answers" / "tea" / "GAD.jsonl", rows)
    written.write_rows(tmp_path / "answers" / "tea" / "before.jsonl", [row | {"response": "b"} for row in rows])
    path = write(tmp_path)
    tab.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.ran = true; };")
    tab.open(path)
    shown = set()
    for _ in range(len(rows) + written.PROMPTS):
        shown.update(texts(tab))
        tab.key("1")
    seen = {"surrogate": "half U+D83D of a pair", "null": "aU+0000b", "override": "abcU+202Egnp.exe"}
    assert {seen.get(name, text) for name, text in HOSTILE.items()} <= shown
    assert tab.evaluate("window.ran") is None and tab.evaluate("document.scripts.length") == 2
    assert tab.complaints == [] and tab.requests == [path.resolve().as_uri()]
