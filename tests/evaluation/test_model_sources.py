"""The options of a source: the best of several draws."""

from __future__ import annotations

import pytest

from gadjax.errors import UserError
from gadjax.evaluation.model_sources import parse_source
from gadjax.evaluation.results import BestOf

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("given", "where", "best_of"),
    [
        ("org/m+best_of=8+discriminator=/d", "org/m", BestOf(8, 0.8, "/d")),
        ("org/m+discriminator=org/d+temperature=1+best_of=2", "org/m", BestOf(2, 1.0, "org/d")),
        ("a+b/c+best=1+best_of=4+discriminator=x=y+z", "a+b/c+best=1", BestOf(4, 0.8, "x=y+z")),
        ("org/m", "org/m", None),
    ],
)
def test_options(given, where, best_of):
    source = parse_source("m", given)
    assert (source.given, source.where, source.kind, source.best_of) == (given, where, "export", best_of)


def test_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m+best_of=8").mkdir()
    assert parse_source("m", "m+best_of=8").where == "m+best_of=8"


@pytest.mark.parametrize("place", ["{run}", "{run}@7", "{run}@best"])
def test_a_checkpoint(tmp_path, place):
    (tmp_path / "run.json").write_text("{}")
    place = place.format(run=tmp_path)
    source, alone = parse_source("m", f"{place}+best_of=8+discriminator=/d"), parse_source("m", place)
    assert (source.kind, source.where, source.step) == (alone.kind, alone.where, alone.step)
    assert source.kind == "checkpoint" and source.workdir == alone.workdir == tmp_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "m+best_of=8",
            r"--models=a=m\+best_of=8: discriminator is missing; write SOURCE\+best_of=8\+discriminator=DIR",
        ),
        ("m+best_of=8+discriminator=", "discriminator is missing"),
        ("m+discriminator=d", "best_of is missing; write"),
        ("m+temperature=1", "best_of is missing; write"),
        ("m+best_of=1+discriminator=d", "best_of=1: a number of at least 2"),
        ("m+best_of=-8+discriminator=d", "best_of=-8: a number of at least 2"),
        ("m+best_of=²+discriminator=d", "best_of=²: a number of at least 2"),
        ("m+best_of=8+discriminator=d+best_of=9", "best_of is there twice"),
        (
            "m+best_of=8+discriminator=d+temperature=0",
            "temperature=0: a number above 0, or all draws would be the same",
        ),
        ("m+best_of=8+discriminator=d+temperature=nan", "temperature=nan: a number above 0"),
        ("m+best_of=8+discriminator=d+temperature=x", "temperature=x: a number above 0"),
        ("api:m+best_of=8+discriminator=d", "best_of is for models on this machine"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message):
        parse_source("a", given)
