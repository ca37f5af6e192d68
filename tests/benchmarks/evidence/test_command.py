"""python -m benchmarks.evidence refuses what it cannot do before it begins, and runs at tiny sizes."""

from __future__ import annotations

import json

import pytest


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=known", "--seeds=0,one"], "--seeds=0,one: write numbers with commas between them, such as 0,1,2"),
        (["--suite=demo", "--arms=control,gan"], "--arms: there is no arm gan: choose among seqkd, control"),
        (["--suite=real", "--teacher=/t"], "suite real needs --train, --heldout: a folder and files of answers"),
        (["--suite=known", "--jobs=0"], "--jobs=0: at least 1"),
    ],
)
def test_bad_arguments(command, tmp_path, arguments, message):
    finished = command("benchmarks.evidence", *arguments, f"--out={tmp_path / 'out'}")
    assert finished.status == 2 and finished.err.count("\n") == 1 and message in finished.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a teacher, its answers, a student and phi are fitted before the first arm
def test_the_known_suite(command, tmp_path):
    out = tmp_path / "out"
    finished = command(
        "benchmarks.evidence", "--suite=known", "--quick", "--seeds=0,1", "--arms=control,soda", f"--out={out}"
    )
    assert finished.status == 0, finished.err
    assert "soda, 2 updates" in finished.out and "minus control" in finished.out
    assert (out / "figure.svg").exists() and (out / "figure.png").exists()
    results = json.loads((out / "results.json").read_text())["results"]
    assert {(row["arm"], row["seed"]) for row in results["rows"] if row["seed"] is not None} == {
        (arm, seed) for arm in ("control", "soda") for seed in (0, 1)
    }
    assert all(gap["seeds"] == 2 and gap["low"] is not None for gap in results["differences"])
    assert {gap["updates"] for gap in results["differences"]} == {1, 2}
