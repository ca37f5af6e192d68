"""What this machine can do in float32: matrix products by the number of rows, and reading memory.

    python -m benchmarks.machine

A product is [rows, 576] times 30 matrices [576, 3072], SmolLM2's largest, with weights stored either way round, by XLA
and by numpy's BLAS. The other benchmarks measure the rates of their own matrices again, in the same rounds.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.harness import command, report
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import Spread, interleave
from benchmarks.harness.peers import Worker
from gadjax.errors import run_command

_ROWS = (1, 4, 16, 64, 256)
_SHAPE = (576, 3072, 30)
_QUICK = {"rows": (1, 16), "shape": (64, 96, 2), "gigabytes": 0.01}


def main() -> None:
    arguments = command.parse(command.parser("benchmarks.machine", __doc__))
    rows, shape, gigabytes = (_ROWS, _SHAPE, 1.0) if not arguments.quick else _QUICK.values()
    command.say_how_busy()
    with Worker("machine") as worker:
        limits = Limits(worker, quick=arguments.quick)
        sides: dict[str, Any] = {"peak": lambda: {"rate": limits.peak()}}
        sides["bandwidth"] = lambda: {"rate": worker.call("bandwidth", gigabytes=gigabytes)}
        for count in rows:
            fields = {"rows": count, "inputs": shape[0], "outputs": shape[1], "count": shape[2]}
            sides[f"{count} rows"] = lambda fields=fields: worker.call("layouts", **fields)
        found = interleave(sides, arguments.rounds)
    peak = Spread.of([turn["rate"] / 1e9 for turn in found["peak"]])
    bandwidth = Spread.of([turn["rate"] / 1e9 for turn in found["bandwidth"]])
    print(f"large product: {peak.text('.0f')} GFLOP/s; reading memory: {bandwidth.text('.1f')} GB/s\n")
    ways = list(found[f"{rows[0]} rows"][0])
    rates, lines, weights = {}, [], math.prod(shape) / 1e9
    for count in rows:
        turns = found[f"{count} rows"]
        rates[count] = {way: Spread.of([2 * count * weights / turn[way] for turn in turns]) for way in ways}
        streamed = Spread.of([4 * weights / min(turn.values()) for turn in turns])
        lines.append([str(count), *(rates[count][way].text(".0f") for way in ways), streamed.text(".1f")])
    print(report.table(["rows", *(f"{way}, GFLOP/s" for way in ways), "best, GB/s of weights"], lines))
    report.write(arguments.out, {"peak": peak, "bandwidth": bandwidth, "rates": rates})


if __name__ == "__main__":
    run_command(main)
