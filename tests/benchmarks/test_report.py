"""Tables and JSON files."""

from __future__ import annotations

import json

from benchmarks.harness import report
from benchmarks.harness.measure import Spread


def test_table():
    text = report.table(["name", "value"], [["a", "1.5"], ["longer", "20"]])
    assert text.splitlines() == ["name    value", "a         1.5", "longer     20"]


def test_json_says_where_it_comes_from(tmp_path):
    path = tmp_path / "new" / "x.json"
    report.write(path, {"ratio": Spread(1.0, 0.5, 2.0)}, {"torch": "2.13.0"})
    written = json.loads(path.read_text())
    assert written["results"] == {"ratio": {"median": 1.0, "low": 0.5, "high": 2.0}}
    origin = written["origin"]
    assert origin["command"].startswith("python -m ")
    assert origin["versions"].keys() >= {"gadjax", "jax", "numpy"} and origin["peer"] == {"torch": "2.13.0"}
    assert origin["machine"]["cores"] >= 1 and origin["machine"]["memory_bytes"] > 2**30
    assert origin["commit"]


def test_commit_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.commit() == "unknown"
