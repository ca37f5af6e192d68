"""Which arm brings a student nearer to its teacher? Suites of runs, measured along the way, at equal updates.

    python -m benchmarks.evidence --suite=known --seeds=0,1,2 --out=DIR

An arm is an ordinary run of `gadjax.train` in DIR/arms/ARM-SEED. What is finished in DIR is read and not repeated, so
the same command goes on where it stopped. Prints tables; writes DIR/tables.txt, results.json, figure.svg
and figure.png.
"""

from __future__ import annotations

import argparse

from benchmarks.evidence import figure, table
from benchmarks.evidence.arms import check_arms
from benchmarks.evidence.demo import Demo
from benchmarks.evidence.known import Known
from benchmarks.evidence.paper import Paper
from benchmarks.evidence.real import Real
from benchmarks.evidence.suite import Options, Suite, run
from gadjax import commands
from gadjax.errors import UserError, run_command
from gadjax.files import expand

SUITES: dict[str, type[Suite]] = {"known": Known, "demo": Demo, "paper": Paper, "real": Real}


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
    names = arguments.arms.split(",") if arguments.arms else list(suite.arms)
    check_arms(names, suite.own)
    if arguments.prepare:
        for seed in seeds:
            suite.prepare(seed)
        return
    rows = run(suite, names, seeds, arguments.out)
    tables = "\n\n".join(filter(None, [table.text(rows), suite.conclude(rows)[0]]))
    (arguments.out / "tables.txt").write_text(tables + "\n", encoding="utf-8")
    print(tables)
    for path in figure.draw(rows, arguments.out / "figure", f"suite {arguments.suite}, seeds {arguments.seeds}"):
        print(path)


if __name__ == "__main__":
    run_command(main)
