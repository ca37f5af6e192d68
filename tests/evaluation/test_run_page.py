"""A run's own page: figures by stage, curves, and the answers of each stage, in a real browser where there is one."""

import shutil

import pytest

from gadjax.errors import UserError
from gadjax.evaluation.run_page import write_run_page
from tests.evaluation import browser
from tests.evaluation import written_evaluation as written

PROGRAM = browser.find()


@pytest.fixture
def workdir(tmp_path):
    written.write_run(tmp_path / "my_run")
    return tmp_path / "my_run"


def test_the_page_has_the_table_the_curves_and_the_answers(workdir):
    page = write_run_page(workdir)
    assert page == workdir / "run.html"
    text = page.read_text()
    assert "<title>Run: my_run</title>" in text and "default-src 'none'" in text.replace("&#39;", "'")
    for row in ("before", "SeqKD", "GAD"):
        assert f'<tr><th scope="row">{row}</th>' in text
    assert text.count("<figure>") == text.count("<svg ") == 2  # of the likelihood and the two-sample test
    assert "seqkd 30" in text and "(run)" not in text


def test_a_run_without_samples_has_no_answers(workdir):
    (workdir / "samples.jsonl").unlink()
    text = write_run_page(workdir).read_text()
    assert "There are no answers." in text and 'href="#answers"' not in text


def test_a_run_without_measurements_has_no_page(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(line for line in lines if '"heldout"' not in line))
    assert write_run_page(workdir) is None and not (workdir / "run.html").exists()


def test_a_damaged_line_is_named_and_the_last_page_stays(workdir):
    before = write_run_page(workdir).read_text()
    with (workdir / "samples.jsonl").open("a") as file:
        file.write('{"stage": "gad"}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl.*no `step`"):
        write_run_page(workdir)
    assert (workdir / "run.html").read_text() == before


@pytest.mark.skipif(PROGRAM is None, reason=f"no headless browser: none of {', '.join(browser.NAMES)}")
def test_answers_are_browsed(workdir, tmp_path):
    profile = tmp_path / "profile"
    page = write_run_page(workdir)
    with browser.open_browser(PROGRAM, profile) as tab:
        tab.open(page)
        assert tab.evaluate("document.getElementById('where').innerText").startswith("1 of ")
        cards = tab.evaluate("[...document.querySelectorAll('.card .who')].map(c => c.textContent)")
        assert cards[0] == "teacher" and set(cards) <= {"teacher", "before", "SeqKD", "GAD"} and len(cards) > 1
        assert tab.complaints == [] and tab.requests == [page.resolve().as_uri()]
    shutil.rmtree(profile, ignore_errors=True)  # the browser's last processes may still write there
