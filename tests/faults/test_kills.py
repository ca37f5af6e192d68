"""`kill -9` at any moment: the same command goes on, to what the run that was never killed ends with, bit for bit.

The long version, of three stages and 50 kills, prints its counts:

    python -m pytest -m slow -s tests/faults/test_kills.py
"""

from __future__ import annotations

import collections
import pathlib
import random
import time
from typing import Any

import pytest

from tests.faults.kills import NONE, OTHERS, PHASES, Moment, Run, Server, choose, read_log
from tests.runs import untimed

KILLS = 50  # of the long version, at least
OF_EACH_PHASE = 5


def assert_same_run(run: Run, workdir: pathlib.Path, rows: int, batch: int) -> None:
    """Metrics, samples, exports and what else there is; and each epoch of each stage sees each row once."""

    def names(folder: pathlib.Path) -> set[str]:
        places = folder.iterdir(), (folder / "checkpoints").iterdir(), (folder / "export").iterdir()
        return {str(path.relative_to(folder)) for paths in places for path in paths}

    def exports(folder: pathlib.Path) -> dict[str, bytes]:
        files = (path for path in (folder / "export").rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    made = [(line["step"], line["stage"]) for line in untimed(run.workdir) if line["kind"] == "train"]
    assert [step for step, _ in made] == list(range(1, len(made) + 1)), "each step once"
    assert untimed(run.workdir) == untimed(workdir)
    assert (run.workdir / "samples.jsonl").read_bytes() == (workdir / "samples.jsonl").read_bytes()
    assert exports(run.workdir) == exports(workdir)
    assert names(run.workdir) == names(workdir), "nothing that a kill left half done"
    seen = collections.defaultdict(list)  # of each stage, in order
    for step, stage in made:
        seen[stage] += run.rows()[step]
    per_epoch = rows - rows % batch
    for stage, order in seen.items():
        for start in range(0, len(order), per_epoch):
            epoch = order[start : start + per_epoch]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(rows)), stage


@pytest.fixture
def server(repo, compilation_cache):
    with Server(repo, compilation_cache) as server:
        yield server


@pytest.fixture
def start(server, small_student, tiny_config, tmp_path):
    """A run of a student of one layer in a folder of this name."""

    def make(name: str, fields: dict[str, Any]) -> Run:
        config = tiny_config(
            {"student": str(small_student), "discriminator.replay_size": 16, "checkpoint.every": 1} | fields
        )
        return Run(config, tmp_path / name, server)

    return make


def test_a_kill_in_each_phase(start):
    """One run, killed once in each that changes something, and resumed each time. All are the first of their
    process, and so take a while. The long version kills in rollouts too.
    """
    fields = {"stages": ("warmup",), "warmup.discriminator_only_steps": 0, "data.heldout": "", "batch_size": 12}
    rng = random.Random(0)
    whole, killed = start("whole", fields), start("killed", fields)
    whole.finish()
    for phase, moment, seconds in (
        ("update", Moment("update:generator", 1), 0.1),
        ("save", Moment("save", 1), 0.03),
        ("export", Moment("export:generator", 2), 0.01),
    ):
        assert killed.kill(moment, rng.uniform(0, seconds)) == phase
    killed.finish()
    assert_same_run(killed, whole.workdir, rows=24, batch=12)


@pytest.mark.slow
def test_kills_at_random_moments(start):
    """All stages, and every kind of moment in them."""
    fields = {
        "stages": ("seqkd", "warmup", "gad"),
        "seqkd.steps": 4,
        "warmup.steps": 4,
        "gad.steps": 4,
        "gad.ppo_minibatches": 2,
        "gad.kl_coefficient": 0.1,
        "data.max_response_length": 24,
        "rollout.num_samples": 4,
        "discriminator.updates_per_step": 2,
        "checkpoint.every": 2,
        "checkpoint.keep": 2,
        "eval_every": 2,
    }
    start("cold", fields).finish()  # compiles everything, so that the next one's times are those of all others
    whole = start("whole", fields)
    whole.finish()
    (of_whole,) = read_log(whole.log).values()
    begun, rng = time.monotonic(), random.Random(0)
    counts, missed, runs = collections.Counter(), 0, 0

    def wanted() -> list[str]:
        if sum(counts.values()) < KILLS:
            return [*PHASES, *OTHERS]
        return [phase for phase in PHASES if counts[phase] < OF_EACH_PHASE]

    while wanted():
        run, runs = start(f"killed{runs}", fields), runs + 1
        while chosen := choose(of_whole.seconds, wanted(), run.saved(), rng):
            phase = run.kill(*chosen)
            if phase is None:
                break  # it was faster, to its end
            counts[phase] += 1
            missed += phase != chosen[0].phase
            if phase == "export" and rng.random() < 0.5:  # else it is killed in the export again
                run.finish()
                break
        else:
            run.finish()
        assert_same_run(run, whole.workdir, rows=24, batch=8)
    phases = ", ".join(f"{phase} {counts[phase]}" for phase in (*PHASES, *OTHERS, NONE))
    print(
        f"\n{sum(counts.values())} kills, by phase: {phases} ({missed} after the end of what they were meant for). "
        f"Each resumed from the newest whole checkpoint; {runs} of {runs} runs are the unharmed one to the bit; "
        f"lost 0, seen twice 0, hung 0; {time.monotonic() - begun:.0f} s"
    )
    assert all(counts[phase] >= OF_EACH_PHASE for phase in PHASES) and sum(counts.values()) >= KILLS
