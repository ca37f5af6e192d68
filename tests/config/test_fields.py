"""The declaration of the fields, and what is derived from it."""

from __future__ import annotations

import ml_collections
import pytest

from gadjax.config import default_config, load_config
from gadjax.config.check import field_value, reference, resolve
from gadjax.config.fields import FIELDS, STAGES, WATCHDOGS

pytestmark = pytest.mark.quick


def test_a_config_has_every_field_with_its_default():
    config = default_config()
    for name, field in FIELDS.items():
        value = field_value(config, name)
        value = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
        assert value == field.default and type(value) is type(field.default), name
    assert STAGES == ("seqkd", "soda", "warmup", "gad") and "kl" in WATCHDOGS


def test_every_field_is_described_in_sentences():
    for name, field in FIELDS.items():
        assert field.description and field.description.rstrip().endswith("."), name


def test_base_is_the_declaration():
    base = load_config("base")
    assert isinstance(base, ml_collections.ConfigDict)
    assert base.to_dict() == default_config().to_dict()


def test_the_user_s_own_values_have_names_of_their_own():
    config = load_config("demo")
    config.user.bonus = 0.5
    assert resolve(config).user.bonus == 0.5 and default_config().user.to_dict() == {}


def test_a_misspelt_field_cannot_be_set():
    with pytest.raises(AttributeError, match="batchsize"):
        default_config().batchsize = 8


def test_a_config_is_no_other_runs():
    """Two configs share no section."""
    default_config().gad.clip = 0.9
    assert default_config().gad.clip == 0.2


@pytest.mark.parametrize(
    ("name", "kind", "choices", "bounds"),
    [
        ("batch_size", "an integer", (), "at least 1"),
        ("seed", "an integer", (), "at least 0 and below 4294967296"),
        ("optimizer.b1", "a number", (), "at least 0 and below 1"),
        ("gad.dual_clip", "a number", (), "above 1"),
        ("random_init", "True or False", (), ""),
        ("student", "text", (), ""),
        ("discriminator.loss", "text", ("bt", "ce"), ""),
        ("checkpoint.best", "text", ("nll", "rouge_l", "two_sample"), ""),
        ("stages", "a tuple of names", STAGES, ""),
    ],
)
def test_what_a_field_takes(name, kind, choices, bounds):
    field = FIELDS[name]
    assert (reference.kind(field), reference.choices(field), reference.bounds(field)) == (kind, choices, bounds)


def test_the_page_is_current(repo):
    """Write it anew with `gadjax config --fields > docs/config.md`."""
    assert (repo / "docs" / "config.md").read_text(encoding="utf-8") == reference.page()


def test_help_lists_every_field():
    text = reference.describe_fields(width=80)
    for name in FIELDS:
        assert text.count(f"- `{name}` (") == 1
    assert "- `gad.clip` (a number, above 0; default 0.2): " in text
    assert "- `discriminator.loss` (bt, ce; default bt): " in text
    assert "- `checkpoint.best` (nll, rouge_l, two_sample; default ''): " in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_smallest_bound_of_each_number_is_accepted(tiny_config):
    """A bound that is "at least" belongs to the values that a field may have."""
    for name, field in FIELDS.items():
        least = [bound.ge for bound in field.metadata if hasattr(bound, "ge")]
        if least and name not in ("rollout.num_samples", "data.max_response_length"):  # rules across fields need more
            fields = {name: type(field.default)(least[0])}
            assert resolve(tiny_config(fields)) is not None, name
