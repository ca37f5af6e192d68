"""A suite's work is a list of tasks in which none needs a later one, and seeds share what they can."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.evidence.demo import Demo
from benchmarks.evidence.known import Known, Weak
from benchmarks.evidence.paper import Paper
from benchmarks.evidence.real import Real
from benchmarks.evidence.suite import Options
from benchmarks.evidence.work import Work
from gadjax.errors import UserError

pytestmark = pytest.mark.quick
GIVEN = {name: pathlib.Path("/given") for name in ("teacher", "train", "heldout")}


def test_the_tasks_of_the_known_suite(tmp_path):
    work = Work(Known(Options(tmp_path)), ["control", "soda"], [0, 3], tmp_path)
    needs = {task.name: set(task.needs) for task in work.tasks}
    assert list(needs) == [
        *("phi", "student-0", "teacher", "start-0", "control-0", "soda-0"),
        *("student-3", "start-3", "control-3", "soda-3"),
    ]
    # Measurements of all seeds are made with the networks of the first.
    assert needs["teacher"] == {"phi", "student-0"} and needs["start-3"] == {"phi", "student-0", "student-3"}
    assert needs["soda-3"] == {"start-3"} and not needs["student-3"]
    assert [task.name for task in work.networks] == ["phi", "student-0", "student-3"]


@pytest.mark.parametrize("suite", [Known, Weak, Demo, Paper, Real])
def test_no_task_needs_a_later_one(suite, tmp_path):
    work = Work(suite(Options(tmp_path, **GIVEN)), suite.arms, [0, 1], tmp_path)
    before: set[str] = set()
    for task in work.tasks:
        assert before.issuperset(task.needs)
        before.add(task.name)
    assert before >= {f"{arm}-{seed}" for arm in suite.arms for seed in (0, 1)}


def test_suite_paper_fits_no_student_that_its_arms_do_not_start_from(tmp_path):
    work = Work(Paper(Options(tmp_path)), ["full"], [0], tmp_path)
    assert [task.name for task in work.networks] == ["phi", "early-0"]


def test_a_teacher_of_another_suite_is_refused(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text('{"num_hidden_layers": 3, "hidden_size": 192}')
    with pytest.raises(UserError, match=r"--out=.* holds the teacher of another suite: give each suite its own folder"):
        Weak(Options(tmp_path)).share()
