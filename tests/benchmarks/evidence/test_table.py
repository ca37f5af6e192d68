"""The tables of a suite show means, ranges and paired differences, and leave out what was not measured."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.evidence import figure, table
from benchmarks.evidence.table import cell, differences, last_rows, text

pytestmark = pytest.mark.quick


def row(arm, seed, updates, kl, **figures):
    return {"arm": arm, "seed": seed, "updates": updates, "reverse_kl_response": kl, "rivals": [], **figures}


ROWS = [
    row("teacher", None, 0, 0.0, coverage=0.64, curve=[[0.7, 0.8, 0.3], [1.0, 0.64, 0.4]]),
    *(row("control", seed, updates, 10.0 + seed - updates / 100) for seed in (0, 1) for updates in (0, 100)),
    *(
        row(
            "game",
            seed,
            updates,
            10.0 + seed - updates / 50 * (1 + seed),
            rivals=["control", "absent"],
            curve=[[0.7, 0.5, 0.5], [1.0, 0.2, 0.7]],
        )
        for seed in (0, 1)
        for updates in (0, 100)
    ),
]


def test_a_cell_has_the_mean_and_the_range():
    assert cell([1.0, 2.0, 4.5], 2) == "2.50 (1.00–4.50)" and cell([12345.0], 0) == "12,345" and cell([], 2) == "–"


def test_the_last_row_of_each_seed_counts():
    assert [(r["arm"], r["seed"], r["updates"]) for r in last_rows(ROWS)] == [
        ("teacher", None, 0),
        ("control", 0, 100),
        ("control", 1, 100),
        ("game", 0, 100),
        ("game", 1, 100),
    ]


def test_differences_are_to_the_rivals_that_are_there():
    (found,) = differences(ROWS)  # at the start nothing differs
    assert (found["arm"], found["rival"], found["figure"]) == ("game", "control", "reverse_kl_response")
    assert found["updates"] == 100 and found["percent"] is None
    assert found["mean"] == pytest.approx(((8 - 9) + (7 - 10)) / 2) and found["low"] < -2 < found["high"]
    (alone,) = differences([r for r in ROWS if r["seed"] != 1])
    assert alone["low"] is None and alone["mean"] == pytest.approx(-1.0)


def arm(name: str, *rivals: str, **figures: list[list[float]]) -> list[table.Row]:
    """Rows of an arm: figures by update (0, 50, 100) and seed."""
    return [
        {"arm": name, "seed": seed, "updates": 50 * i, "rivals": list(rivals)}
        | {figure: values[i][seed] for figure, values in figures.items()}
        for seed in (0, 1)
        for i in range(3)
    ]


SEVERAL = [
    *arm("control", reverse_kl_token=[[0.4, 0.2], [0.5, 0.3], [0.4, 0.4]], entropy=[[1, 1], [1, 1], [1, 1]]),
    *arm("seqkd", "control", reverse_kl_token=[[0.4, 0.2], [0.2, 0.3], [0.1, 0.3]]),
    *arm(
        "option",
        "game",
        "control",
        "seqkd",
        reverse_kl_token=[[0.4, 0.2], [0.3, 0.1], [0.2, 0.2]],
        entropy=[[1, 1], [0.9, 0.7], [0.5, 0.5]],
    ),
]


def test_differences_are_at_every_point_and_in_per_cent_of_the_rival():
    found = {(g["arm"], g["rival"], g["updates"], g["figure"]): g for g in differences(SEVERAL)}
    assert {key[:3] for key in found} == {
        (name, rival, updates)
        for name, rival in [("seqkd", "control"), ("option", "control"), ("option", "seqkd")]
        for updates in (50, 100)
    }
    gap = found["option", "control", 50, "reverse_kl_token"]
    assert gap["mean"] == pytest.approx(-0.2) and gap["percent"] == pytest.approx(-50) and gap["seeds"] == 2
    # Equal means that hide differences of the seeds are a difference: 0.1 and -0.1.
    gap = found["option", "seqkd", 100, "reverse_kl_token"]
    assert gap["mean"] == pytest.approx(0) and gap["high"] == pytest.approx(-gap["low"]) and gap["high"] > 0.5
    assert found["option", "control", 100, "entropy"]["percent"] is None
    assert ("option", "seqkd", 100, "entropy") not in found


def test_text_has_a_small_table_for_each_arm_and_point():
    _, *parts = text(SEVERAL).split("option, ")
    assert len(parts) == 2 and parts[0].startswith("50 updates")
    head, first, second = (" ".join(line.split()) for line in parts[0].splitlines()[:3])
    assert head == "50 updates minus control 2 seeds, in % minus seqkd 2 seeds, in %"
    assert first == "reverse_kl_token -0.200 (-0.200 to -0.200) -50.0 -0.050 (-1.956 to +1.856) -20.0"
    assert second == "entropy -0.200 (-1.471 to +1.071) – – –"


def test_text_shows_the_run_the_curve_and_the_difference():
    shown = text(ROWS)
    assert "9.50 (9.00–10.00)" in shown  # the control's end
    assert "10.50 (10.00–11.00)" in shown  # its start
    assert (
        "0.500 / 0.500" in shown
        and "game, 100 updates  " in shown
        and "D AUC" not in shown
        and "forward" not in shown.split("\n", 1)[1]
    )


def test_text_shows_the_best_of_several_beside_a_draw():
    ends = {
        end: {"plain": {"coverage": at, "two_sample": None}, "best": {"coverage": at + 0.1, "two_sample": None}}
        for end, at in (("start", 0.5), ("end", 0.7))
    }
    rows = [row("game", seed, 100, 1.0, best_of={"samples": 8, **ends}) for seed in (0, 1)]
    shown = text([*ROWS, *rows]).split("The best of 8 draws")[1].split("\n\n")[0].splitlines()[1:]
    assert [" ".join(line.split()) for line in shown] == [
        "arm coverage",
        "game, start, a draw 0.500 (0.500–0.500)",
        "game, start, best of 8 0.600 (0.600–0.600)",
        "game, end, a draw 0.700 (0.700–0.700)",
        "game, end, best of 8 0.800 (0.800–0.800)",
    ]
    assert "The best of" not in text(ROWS)


def test_text_without_figures_is_empty():
    assert text([]) == ""
    assert not table.differences([row("a", 0, 0, None, rivals=["b"]), row("b", 0, 0, 1.0)])


def test_the_figure_is_a_vector_and_a_bitmap(tmp_path: pathlib.Path):
    pytest.importorskip("matplotlib")
    paths = figure.draw(ROWS, tmp_path / "figure", "title")
    assert [path.suffix for path in paths] == [".svg", ".png"]
    assert "control" in paths[0].read_text() and paths[1].read_bytes().startswith(b"\x89PNG")
    again = figure.draw(ROWS, tmp_path / "again", "title")
    assert again[0].read_bytes() == paths[0].read_bytes()  # the same figures, the same file
    figure.draw([row("a", 0, 0, None, nll=2.0)], tmp_path / "other", "without a known teacher")
