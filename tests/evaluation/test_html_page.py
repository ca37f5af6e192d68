"""What the pages of an evaluation share: data that no text can end, and texts in part."""

import json

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadjax.evaluation import html_page


@given(st.recursive(st.text(st.characters(codec=None)), lambda part: st.lists(part) | st.dictionaries(st.text(), part)))
def test_embedded_data_is_the_data_whatever_the_text(value):
    text = html_page.as_script(value)
    assert not set("<>&\u2028\u2029") & set(text)
    written_out = text.encode("utf-8", "backslashreplace").decode()
    assert json.loads(written_out) == json.loads(json.dumps(value))


def test_a_long_text_is_held_in_part_with_its_length():
    limit = html_page.TEXT_LIMIT
    assert html_page.text_in_part("a" * limit) == "a" * limit
    assert html_page.text_in_part("a" * limit + "b") == ("a" * limit, limit + 1)


def test_a_page_is_whole_or_as_it_was(tmp_path):
    """A template that lacks a value leaves the last page."""
    out = tmp_path / "blind.html"
    files = {"styles": ["report.css"], "scripts": ["passage.js"]}
    html_page.write_page(out, "blind.html", {"data": "{}", "count": 1}, **files)
    before = out.read_text()
    assert "const shared" in before and "default-src 'none'" in before.replace("&#39;", "'")
    with pytest.raises(jinja2.UndefinedError, match="'data' is undefined"):
        html_page.write_page(out, "blind.html", {"count": 1}, **files)
    assert out.read_text() == before and list(tmp_path.iterdir()) == [out]
