"""Which arm brings a student nearer to its teacher? Suites of runs, measured along the way, at equal updates.

    python -m benchmarks.evidence --suite=known --seeds=0,1,2 --jobs=2 --out=DIR

An arm is an ordinary run of `gadjax.train` in DIR/arms/ARM-SEED. What is finished in DIR is read and not repeated, so
the same command goes on where it stopped. Prints tables; writes DIR/tables.txt, results.json, figure.svg
and figure.png. If an arm fails, the others are run all the same, and the exit status is 1.

With --jobs=N, networks and arms are made N at a time. Each is a process of its own on its share of the cores, and what
it prints is in DIR/logs. A single small network does not use a second core.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from benchmarks.evidence import figure, jobs, table
from benchmarks.evidence.arms import check_arms
from benchmarks.evidence.demo import Demo
from benchmarks.evidence.known import Known, Weak
from benchmarks.evidence.paper import Paper
from benchmarks.evidence.real import Real
from benchmarks.evidence.suite import Options, Suite
from benchmarks.evidence.work import Work
from benchmarks.harness.command import progress
from benchmarks.harness.report import ROOT
from gadjax import commands
from gadjax.errors import UserError, run_command
from gadjax.files import expand

SUITES: dict[str, type[Suite]] = {"known": Known, "weak": Weak, "demo": Demo, "paper": Paper, "real": Real}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", required=True, type=expand, help="folder of the runs and of the results")
    parser.add_argument("--arms", default="", help="comma-separated; by default the suite's own")
    parser.add_argument("--jobs", type=int, default=1, help="processes that fit networks and run arms at a time")
    parser.add_argument("--best_of", type=int, default=0, help="draws of which an arm's discriminator picks one; 0: no")
    parser.add_argument("--prepare", action="store_true", help="make what the arms start from, and end")
    parser.add_argument("--size", default="cpu", choices=("cpu", "gpu"), help="of suite real")
    parser.add_argument("--teacher", type=expand, help="folder of SmolLM2-135M-Instruct, for suites demo and real")
    parser.add_argument("--train", type=expand, help="its answers to learn from, for suite real (Parquet)")
    parser.add_argument("--heldout", type=expand, help="its answers to other prompts, for suite real (Parquet)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--task", default="", help=argparse.SUPPRESS)  # the one task that a process of --jobs does
    arguments = parser.parse_args()
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in arguments.seeds.split(",")))
    except ValueError:
        raise UserError(f"--seeds={arguments.seeds}: write numbers with commas between them, such as 0,1,2") from None
    if arguments.jobs < 1:
        raise UserError(f"--jobs={arguments.jobs}: at least 1")
    if arguments.best_of not in (0, *range(2, 1000)):
        raise UserError(f"--best_of={arguments.best_of}: from 2 to 999 draws, or 0 to leave it out")
    if arguments.jobs > 1:  # else the first process takes most of a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    commands.use_compilation_cache()
    given = {name: getattr(arguments, name) for name in ("quick", "size", "teacher", "train", "heldout")}
    suite = SUITES[arguments.suite](Options(arguments.out, **given))
    names = list(dict.fromkeys(arguments.arms.split(","))) if arguments.arms else list(suite.arms)
    check_arms(names, suite.own)
    work = Work(suite, names, seeds, arguments.out, arguments.best_of)
    if arguments.task:
        next(task for task in work.tasks if task.name == arguments.task).do()
        return 0
    suite.share()
    tasks = work.networks if arguments.prepare else work.tasks
    if arguments.jobs == 1:
        failed = jobs.in_turn(tasks, work.ended)
    else:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        failed = jobs.side_by_side(tasks, arguments.jobs, _command, environment, arguments.out / "logs", work.ended)
    if work.rows:
        _conclude(suite, work, f"suite {arguments.suite}, seeds {arguments.seeds}", arguments.out)
    for name, reason in failed.items():
        progress(f"error: {name}: {reason}")
    return 1 if failed else 0


def _command(task: str) -> Sequence[str]:
    """The command line that does one task of this command."""
    return [sys.executable, "-m", "benchmarks.evidence", *sys.argv[1:], f"--task={task}"]


def _conclude(suite: Suite, work: Work, title: str, out: pathlib.Path) -> None:
    """Prints the tables, and writes them and the figure."""
    rows = work.rows
    tables = "\n\n".join(filter(None, [table.text(rows), suite.conclude(rows)[0]]))
    (out / "tables.txt").write_text(tables + "\n", encoding="utf-8")
    print(tables)
    for path in figure.draw(rows, out / "figure", title):
        print(path)


if __name__ == "__main__":
    run_command(main)
