"""A suite of two arms at toy sizes: it is measured against an exact teacher, and what is finished is only read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from benchmarks.evidence import answers, jobs, measure, networks, runs, table
from benchmarks.evidence.arms import Game, Scene, make_arm
from benchmarks.evidence.measure import Bench, Settings
from benchmarks.evidence.networks import Data, Fit, Fitting
from benchmarks.evidence.suite import Options, Suite
from benchmarks.evidence.work import Work
from gadjax.data.schema import read_rows
from gadjax.rollout.chat_model import load_network

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")
GAME = Game(updates=2, every=1, prompts=4, samples=2, discriminator_steps=1)
START = Fit(2, 1e-2, batch=8, every=2)


def run(suite: Suite, names, folder: pathlib.Path, best_of: int = 0) -> list[table.Row]:
    """Does all of the suite's work in this process, and returns its rows."""
    work = Work(suite, names, [0], folder, best_of)
    suite.share()
    assert not jobs.in_turn(work.tasks, work.ended)
    return work.rows


@pytest.fixture(scope="module")
def model(tmp_path_factory, student, add_weights) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(student, folder)
    (folder / "generation_config.json").write_text("{}")
    return add_weights(folder)


@pytest.fixture(scope="module")
def tiny(model, train_file, heldout_file) -> type[Suite]:
    class Tiny(Suite):
        arms = ("control", "oracle-token")

        def __init__(self, options: Options):
            self.folder, self.data = options.folder, Data(train_file, heldout_file, 12)
            self.teacher = self.folder / "teacher"

        def share(self):
            networks.at_temperature(model, 0.5, self.teacher)

        def networks(self, seed):
            return {"student": Fitting(model, self.data, START, seed, self.folder / f"student-{seed}", random=False)}

        def scene(self, seed, costs):
            start = self.folder / f"student-{seed}"
            return Scene(self.folder, seed, start, START, self.data, GAME, teacher=self.teacher)

        def bench(self, seed):
            settings = Settings(samples=1, temperatures=(1.0,), folds=0)
            return Bench(self.data, settings, self.teacher, self.teacher)

    return Tiny


@pytest.fixture(scope="module")
def finished(
    tiny, tmp_path_factory, one_device, quick_compile, shared_programs
) -> tuple[Suite, pathlib.Path, list[table.Row]]:
    folder = tmp_path_factory.mktemp("suite")
    suite = tiny(Options(folder))
    return suite, folder, run(suite, suite.arms, folder)


def test_every_arm_is_measured_along_its_run(finished):
    _, folder, rows = finished
    assert [(r["arm"], r["updates"]) for r in rows] == [
        ("teacher", 0),
        *(("control", n) for n in range(3)),
        *(("oracle-token", n) for n in range(3)),
    ]
    for row in rows:
        assert np.isfinite([row["entropy"], row["nll"], row["reverse_kl_response"], row["forward_kl_token"]]).all()
    assert all("d_auc" in row for row in rows if row["arm"] == "oracle-token" and row["updates"])
    assert not any({"d_auc", "d_token_correlation"} & row.keys() for row in rows if row["arm"] == "control")
    for row in rows:  # the discriminator is the teacher itself, so that its token rewards are the true ones
        if row["arm"] == "oracle-token" and row["updates"]:
            assert row["d_token_correlation"] == pytest.approx(1)
            assert row["d_end_bias"] is None or row["d_end_bias"] == pytest.approx(0, abs=1e-3)
    # Both arms start from one student, and only one of them samples.
    starts = [row["reverse_kl_response"] for row in rows if row["updates"] == 0 and row["seed"] == 0]
    assert starts[0] == starts[1] > 0
    sampled = {row["arm"]: row["sampled_tokens"] for row in rows if row["updates"] == 2}
    assert sampled["control"] == 0 < sampled["oracle-token"]
    saved = json.loads((folder / "results.json").read_text())["results"]
    assert len(saved["rows"]) == len(rows) and saved["differences"][0]["rival"] == "control"


def test_what_takes_long_is_measured_at_the_ends_alone(finished, tiny):
    _, folder, rows = finished
    assert [("curve" in row) for row in rows if row["arm"] == "control"] == [True, False, True]
    # Figures that were measured when all points had them serve still; others of the same key do not serve at the end.
    suite = tiny(Options(folder))
    bench, arm, workdir = suite.bench(0), make_arm("control", suite.prepare(0)), folder / "arms" / "control-0"
    kept = workdir / "measured-1.json"
    now = kept.read_text()
    try:
        runs.write_json(kept, {"key": bench.key_of(f"{workdir}@1"), "figures": {"entropy": 7.0}})
        assert bench.has_measured_arm(arm, workdir) and bench.measure_arm(arm, workdir, 1) == {"entropy": 7.0}
    finally:
        kept.write_text(now)
    sooner = dataclasses.replace(arm, points={0: 0, 1: 1})  # it ends where the other is on the way
    assert bench.has_measured_arm(arm, workdir) and not bench.has_measured_arm(sooner, workdir)


def test_the_margin_of_the_teacher_as_discriminator_is_both_divergences(finished):
    """E_p[log p - log q] - E_q[log p - log q], since both were measured on the same answers."""
    for row in finished[2]:
        if row["arm"] == "oracle-token" and row["updates"]:
            assert row["d_margin"] == pytest.approx(row["reverse_kl_response"] + row["forward_kl_response"], rel=1e-4)


def test_the_teacher_has_no_divergence_from_itself(finished):
    teacher = finished[2][0]
    assert teacher["reverse_kl_response"] == teacher["forward_kl_token"] == 0


def test_what_is_finished_is_read(finished, tiny, monkeypatch):
    _, folder, rows = finished
    monkeypatch.setattr(runs, "run", None)  # nothing trains,
    monkeypatch.setattr(measure.CachedModel, "draw", None)  # and nothing is measured
    again = run(tiny(Options(folder)), ("control", "oracle-token"), folder)
    assert again == rows


def test_what_is_finished_needs_no_process(finished, tiny, tmp_path):
    """Every task says that it is done, but not an arm that was not run, or one whose measurement is gone."""
    _, folder, _ = finished
    done = {task.name: task.is_done() for task in Work(tiny(Options(folder)), ("control", "soda"), [0], folder).tasks}
    assert done == {"student-0": True, "teacher": True, "start-0": True, "control-0": True, "soda-0": False}
    measured = folder / "arms" / "control-0" / "measured-1.json"
    moved = measured.rename(tmp_path / "moved.json")
    try:
        again = Work(tiny(Options(folder)), ("control",), [0], folder)
        assert not again.tasks[-1].is_done()
    finally:
        moved.rename(measured)
    assert again.tasks[-1].is_done()


def test_processes_find_their_tasks_by_name_and_the_rows_are_in_the_order_of_the_command(finished, tiny):
    """Another process has done the tasks: what they left is read, whichever ended first."""
    _, folder, rows = finished
    work = Work(tiny(Options(folder)), ("control", "oracle-token"), [0], folder)
    for name in ("oracle-token-0", "start-0", "teacher", "control-0"):
        work.ended(name)
    assert work.rows == rows


def test_the_best_of_several_draws_is_what_the_discriminator_prefers(finished, tiny, monkeypatch):
    """The arm's discriminator is the teacher, so the choice can be made by hand: by log p - log q."""
    _, folder, rows = finished
    suite, names = tiny(Options(folder)), ("control", "oracle-token")
    again = run(suite, names, folder, best_of=3)
    assert [{**row, "best_of": None} for row in again] == [{**row, "best_of": None} for row in rows]
    (found,) = [row["best_of"] for row in again if "best_of" in row]  # the control has no discriminator
    assert again[-1]["arm"] == "oracle-token" and found == again[-1]["best_of"] and found["samples"] == 3
    bench = suite.bench(0)
    start, teacher = (
        measure.CachedModel(measure.local_model(str(model)), measure.Memory())
        for model in (folder / "student-0", suite.teacher)
    )
    prompts = start.prompts(bench.chats)
    draws = [[draw.tokens for draw in start.draw(prompts, 12, 1.0, sample=i)] for i in range(3)]
    p, q = (np.array([model.log_likelihoods(prompts, of, 1.0) for of in draws]) for model in (teacher, start))
    lengths = np.array([[len(tokens) for tokens in of] for of in draws])
    chosen = (p - q).argmax(axis=0), np.arange(len(prompts))
    assert len(set(chosen[0])) > 1  # not always the same draw
    best, plain = found["start"]["best"], found["start"]["plain"]
    assert best["teacher_nats"] == pytest.approx(p[chosen].sum() / lengths[chosen].sum(), rel=1e-4)
    assert best["length_ratio"] / plain["length_ratio"] == pytest.approx(lengths[chosen].sum() / lengths[0].sum())
    assert plain["teacher_nats"] == pytest.approx(p[0].sum() / lengths[0].sum(), rel=1e-4)
    assert plain["distinct_2"] == rows[-3]["distinct_2"]  # those of the start, and below of the end
    assert found["end"]["plain"]["distinct_2"] == rows[-1]["distinct_2"] and found["end"]["best"] != best
    # It is kept, and another number of draws is not the same.
    monkeypatch.setattr(measure.CachedModel, "draw", None)
    assert run(tiny(Options(folder)), names, folder, best_of=3) == again
    done = [Work(tiny(Options(folder)), names, [0], folder, best_of).tasks[-1].is_done() for best_of in (0, 3, 2)]
    assert done == [True, True, False]


def test_another_measurement_is_made_anew(finished, tiny, monkeypatch):
    _, folder, _ = finished
    suite, drawn = tiny(Options(folder)), []
    monkeypatch.setattr(suite, "bench", lambda seed: Bench(suite.data, Settings(samples=2, folds=0), suite.teacher))
    original = measure.CachedModel.draw
    monkeypatch.setattr(measure.CachedModel, "draw", lambda *a, **k: drawn.append(1) or original(*a, **k))
    monkeypatch.setattr(measure, "write_json", lambda *_: None)  # the other tests' measurements stay
    rows = run(suite, ("control",), folder)
    assert drawn and "reverse_kl_response" not in rows[-1]


def test_a_copy_at_a_temperature_is_the_model_at_it(model, tmp_path):
    networks.at_temperature(model, 0.5, tmp_path / "colder")
    ids, at = np.array([[5, 6, 7]]), np.arange(3)[None]
    logits = []
    for folder in (model, tmp_path / "colder"):
        network = load_network(str(folder), "lm")
        logits.append(np.asarray(network.model.logits(network.params, ids, at, np.ones_like(ids))))
    np.testing.assert_allclose(logits[1], logits[0] / 0.5, rtol=2e-5, atol=1e-5)


def test_answers_are_drawn_once_and_cut_ones_left_out(model, tmp_path, train_file):
    ending = tmp_path / "ending"  # a third of its tokens end an answer
    shutil.copytree(model, ending)
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(100, 200))}))
    chats, out = answers.prompts_of(train_file, limit=5), tmp_path / "answers.parquet"
    cost = answers.draw(ending, chats, 20, 3, 0, out)
    assert 20 <= cost.sampled_tokens <= 60
    whole = read_rows(out)
    assert not whole.cut.any() and 0 < len(whole) < 20
    assert answers.draw(pathlib.Path("gone"), chats, 20, 3, 0, out) == cost
    answers.draw(ending, chats, 20, 3, 0, tmp_path / "all.parquet", keep_cut=True)
    rows = read_rows(tmp_path / "all.parquet")
    assert rows.cut.any() and len(rows) > len(whole)
