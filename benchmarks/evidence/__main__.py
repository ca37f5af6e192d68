"""Which arm brings a student nearer to its teacher? Suites of runs, measured along the way, at equal updates.

    python -m benchmarks.evidence --suite=known --seeds=0,1,2 --out=DIR

An arm is an ordinary run of `gadjax.train` in DIR/arms/ARM-SEED. What is finished in DIR is read and not repeated, so
the same command goes on where it stopped. Prints tables; writes DIR/results.json, figure.svg and figure.png.
"""

from __future__ import annotations

import argparse
import pathlib

from benchmarks.evidence import figure, runs, table
from benchmarks.evidence.arms import Scene, make_arm
from benchmarks.evidence.demo import Demo
from benchmarks.evidence.known import Known
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.paper import Paper
from benchmarks.evidence.real import Real
from benchmarks.evidence.suite import Options, Suite
from benchmarks.harness import report
from benchmarks.harness.command import progress
from gadjax import commands
from gadjax.errors import UserError, run_command
from gadjax.files import expand

SUITES: dict[str, type[Suite]] = {"known": Known, "demo": Demo, "paper": Paper, "real": Real}


def measure(suite: Suite, names: list[str], seeds: list[int], folder: pathlib.Path) -> list[table.Row]:
    """Runs and measures every arm with every seed, and returns a row for each point along each run.

    results.json is written anew after each arm, so that a run that is stopped leaves what it has.
    """
    rows: list[table.Row] = []
    bench = None
    for seed in seeds:
        scene = suite.prepare(seed)
        if bench is None:
            bench = suite.bench(seed)
            rows += reference_rows(bench, scene, folder)
        for name in names:
            arm = make_arm(name, scene, suite.own)
            workdir = folder / "arms" / f"{name}-{seed}"
            runs.train(arm.config, workdir)
            for updates, step in arm.points.items():
                cost = runs.cost(workdir, step) + runs.Cost(0.0, arm.preparation.sampled_tokens)
                row = {"arm": name, "seed": seed, "updates": updates, "baseline": arm.baseline}
                row |= bench.measure_arm(arm, workdir, updates)
                row |= {"seconds": cost.seconds, "sampled_tokens": cost.sampled_tokens}
                rows.append(row | {"preparation_seconds": arm.preparation.seconds})
                progress(table.shown(rows[-1]))
            found = {"rows": rows, "differences": table.differences(rows), "conclusions": suite.conclude(rows)[1]}
            report.write(folder / "results.json", found)
    return rows


def reference_rows(bench: Bench, scene: Scene, folder: pathlib.Path) -> list[table.Row]:
    """The teacher's own figures: of a fresh draw where the teacher is open, else of its answers."""
    if scene.teacher is None:
        return [{"arm": "teacher", "seed": None, "updates": 0, **bench.of_answers()}]
    figures = bench.measure_model(scene.teacher, folder / "teacher-measured.json")
    return [{"arm": "teacher", "seed": None, "updates": 0, **figures}]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", required=True, type=expand, help="folder of the runs and of the results")
    parser.add_argument("--arms", default="", help="comma-separated; by default the suite's own")
    parser.add_argument("--prepare", action="store_true", help="make what the arms start from, and end")
    parser.add_argument("--size", default="cpu", choices=("cpu", "gpu"), help="of suite real")
    parser.add_argument("--teacher", type=expand, help="folder of SmolLM2-135M-Instruct, for suites demo and real")
    parser.add_argument("--train", type=expand, help="its answers to learn from, for suite real (Parquet)")
    parser.add_argument("--heldout", type=expand, help="its answers to other prompts, for suite real (Parquet)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    arguments = parser.parse_args()
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds={arguments.seeds}: write numbers with commas between them, such as 0,1,2") from None
    commands.use_compilation_cache()
    given = {name: getattr(arguments, name) for name in ("quick", "size", "teacher", "train", "heldout")}
    suite = SUITES[arguments.suite](Options(arguments.out, **given))
    if arguments.prepare:
        for seed in seeds:
            suite.prepare(seed)
        return
    names = arguments.arms.split(",") if arguments.arms else list(suite.arms)
    rows = measure(suite, names, seeds, arguments.out)
    print("\n\n".join(filter(None, [table.text(rows), suite.conclude(rows)[0]])))
    for path in figure.draw(rows, arguments.out / "figure", f"suite {arguments.suite}, seeds {arguments.seeds}"):
        print(path)


if __name__ == "__main__":
    run_command(main)
