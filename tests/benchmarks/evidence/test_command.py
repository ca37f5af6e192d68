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
        (["--suite=known", "--best_of=1"], "--best_of=1: from 2 to 999 draws, or 0 to leave it out"),
    ],
)
def test_bad_arguments(command, tmp_path, arguments, message):
    finished = command("benchmarks.evidence", *arguments, f"--out={tmp_path / 'out'}")
    assert finished.status == 2 and finished.err.count("\n") == 1 and message in finished.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # a teacher, its answers, a student and phi are fitted before the first arm
def test_the_known_suite_in_two_processes_at_a_time(command, tmp_path):
    out = tmp_path / "out"
    arguments = ["--quick", "--seeds=0,1", "--arms=control,phi-frozen-token", "--jobs=2", "--best_of=2"]
    finished = command("benchmarks.evidence", "--suite=known", *arguments, f"--out={out}")
    assert finished.status == 0, finished.err
    assert "phi-frozen-token, 2 updates" in finished.out and "minus control" in finished.out
    assert "phi-frozen-token, end, best of 2" in finished.out and (out / "logs" / "control-1.log").exists()
    assert (out / "figure.svg").exists() and (out / "figure.png").exists()
    results = json.loads((out / "results.json").read_text())["results"]
    assert {(row["arm"], row["seed"]) for row in results["rows"] if row["seed"] is not None} == {
        (arm, seed) for arm in ("control", "phi-frozen-token") for seed in (0, 1)
    }
    assert all(gap["seeds"] == 2 and gap["low"] is not None for gap in results["differences"])
    assert {gap["updates"] for gap in results["differences"]} == {1, 2}
