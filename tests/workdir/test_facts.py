"""What a run's folder keeps of the model that its weights came from."""

from __future__ import annotations

import pytest

from gadjax.workdir.facts import origin

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, {}),
        ("# A model without front matter", {}),
        ("---\nlicense: mit\ntags: [x]\n---\n# A model", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: mine\nbase_model: [a/b]\n---\n",
            {"license": "other", "license_name": "mine", "base_model": ["a/b"]},
        ),
        ("---\nlicense: [unclosed\n---\n# A model", {}),
        ("---\n- a list\n---\n# A model", {}),
    ],
)
def test_the_card_of_a_student(tmp_path, card, expected):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert origin(tmp_path) == expected
