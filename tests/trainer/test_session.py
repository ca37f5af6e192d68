"""What a run says of itself before it begins."""

from __future__ import annotations

import json
import pathlib

import pytest

from gadjax import train
from gadjax.progress import RunProgress
from gadjax.setup.prepare import prepare_run
from gadjax.trainer import session
from gadjax.trainer.session import describe

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")


class Enough(Exception):
    """What the test wanted to see has happened."""


def test_the_student_is_named_as_the_config_names_it(tiny_config, tmp_path, student, monkeypatch):
    """A hub id's files lie in a folder named by a commit's hash, which tells nobody anything."""
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123456789abcdef"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(student)
    monkeypatch.setattr("gadjax.setup.prepare.resolve_model", lambda name: snapshot)
    first = describe(prepare_run(tiny_config({"student": "org/tiny"}))).splitlines()[0]
    assert first.startswith("student: org/tiny, ") and first.endswith(" parameters, float32")


def test_a_run_says_what_it_took_its_data_for(tiny_config, tmp_path):
    rows = [{"question": f"one {i}", "gold": "two"} for i in range(10)]
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "three"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps([{"messages": chat}] * 2 + [{"prompt": "one", "completion": "two"}]))
    fields = {"data.train": str(tmp_path / "a.jsonl"), "data.columns": "question,gold"}
    lines = describe(prepare_run(tiny_config(fields | {"data.heldout": str(tmp_path / "b.json")}))).splitlines()
    assert lines[1:5] == [
        f"train: {tmp_path}/a.jsonl (data.columns, `question`, `gold`): 10 of 10 rows",
        f"held out: {tmp_path}/b.json: 3 of 3 rows",
        "  2 rows of 1 file taken for OpenAI, `messages`",
        "  1 row of 1 file taken for TRL, `prompt`, `completion`",
    ]
    fields = {"data.train": str(tmp_path / "a.jsonl"), "data.columns": "question,gold", "data.heldout": ""}
    lines = describe(prepare_run(tiny_config(fields | {"data.heldout_share": 0.3, "batch_size": 2}))).splitlines()
    assert lines[2].startswith("held out: of the same: ")


def test_the_terminal_sees_the_rows_being_tokenised(tiny_config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(RunProgress, "count", lambda self, *args: seen.append(args))

    def stop(setup, workdir, **_):
        raise Enough

    monkeypatch.setattr(session, "check_workdir", stop)
    with pytest.raises(Enough):
        train.run(tiny_config(), tmp_path)
    assert seen == [("tokenising data.train", 24, 24), ("tokenising data.heldout", 8, 8)]


def test_a_config_is_all_that_python_must_give(tiny_config, monkeypatch):
    asked = []
    monkeypatch.setattr(
        session, "train_and_export", lambda config, workdir, *rest, **more: asked.append((config, workdir))
    )
    config = tiny_config()
    train.run(config)
    train.run(config, "elsewhere")
    assert asked == [(config, pathlib.Path("runs/default")), (config, pathlib.Path("elsewhere"))]
