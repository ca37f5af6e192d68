"""Seconds from the command to the first training step of the demo, and to a command's help.

    python -m benchmarks.startup

"cold": with an empty cache of compiled programs. "warm": with the cache of a run before. Both count everything: the
imports, tokenising, the weights, compiling, and the measurement on held-out prompts that comes before the first step.
Run it in an environment that README's first command made: if PyTorch is installed, transformers imports it, which takes
two seconds.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.harness import command, report
from benchmarks.harness.measure import Spread, interleave
from gadjax.errors import UserError, run_command

CONFIG = "configs/demo.py"
_LONGEST = 600.0  # seconds that a first step may take


def first_step(folder: pathlib.Path, cache: pathlib.Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Seconds until a new run has logged its first step; the run is then killed.

    Raises:
      UserError: the run ended before, or took too long.
    """
    workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    log = workdir / "log.txt"
    start = time.perf_counter()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "gadjax.train", *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as run,
    ):
        try:
            while not _trained(workdir / "metrics.jsonl"):
                if run.poll() is not None or time.perf_counter() - start > _LONGEST:
                    raise UserError(f"the run made no step; it said:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
            return {"seconds": time.perf_counter() - start}
        finally:
            run.kill()


def help_of(name: str) -> dict[str, Any]:
    """Seconds that a command's --help takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"gadjax.{name}", "--help"], capture_output=True, check=False)
    return {"seconds": time.perf_counter() - start}


def _trained(metrics: pathlib.Path) -> bool:
    return metrics.exists() and '"kind": "train"' in metrics.read_text()


def main() -> None:
    arguments = command.parse(command.parser("benchmarks.startup", __doc__))
    overrides = ("--config.evaluation.prompts=4",) if arguments.quick else ()
    command.say_how_busy()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        warm = folder / "warm"
        first_step(folder, warm, overrides)  # fills the cache

        def cold() -> dict[str, Any]:
            return first_step(folder, pathlib.Path(tempfile.mkdtemp(dir=folder)), overrides)

        sides = {"first step, cold": cold, "first step, warm": lambda: first_step(folder, warm, overrides)}
        sides["gadjax.train --help"] = lambda: help_of("train")
        found = interleave(sides, arguments.rounds)
    spreads = {side: Spread.of([turn["seconds"] for turn in turns]) for side, turns in found.items()}
    print(report.table(["", "seconds"], [[side, spread.text(".1f")] for side, spread in spreads.items()]))
    report.write(arguments.out, spreads)


if __name__ == "__main__":
    run_command(main)
