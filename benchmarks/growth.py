"""How time and memory of a GAD step grow with its batch, response length, vocabulary and depth.

    python -m benchmarks.growth

The trainer's steps on random weights, one axis doubled at a time from a small base. Seconds are of the rollout, D's
update and G's update, all points in turn in every round; bytes are what the compiler reports for each program. A power
law value = c size^p is fitted through each axis; "last" is p of the last doubling alone, where fixed costs weigh least.
Only attention may grow faster than linearly: along the response's length p may reach that of the operations that the
step needs at least. Time counts as worse from 0.15 above that, memory from 0.05.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import command, models, report
from benchmarks.harness.batches import Shape, make_batch
from benchmarks.harness.limits import forward_flops, update_flops
from benchmarks.harness.measure import Spread, exponent, interleave
from benchmarks.harness.peers import Worker
from benchmarks.update import config_fields
from gadjax.errors import run_command
from gadjax.models.architecture import ModelConfig

PHASES = ("rollout", "discriminator", "generator")
TOLERANCE = {"seconds": 0.15, "bytes": 0.05}


@dataclasses.dataclass(frozen=True)
class Point:
    """One size of one axis."""

    prompts: int
    response: int
    vocabulary: int
    layers: int

    def fields(self, sizes: dict[str, Any]) -> dict[str, Any]:
        """The model's config.json."""
        return sizes | {"vocab_size": self.vocabulary, "num_hidden_layers": self.layers}

    def shape(self) -> Shape:
        """The step's shape."""
        return Shape(self.prompts, 4, 32, self.response, self.vocabulary)

    def least(self, sizes: dict[str, Any]) -> float:
        """Operations that the step needs at least: reading prompts, decoding every token, both updates."""
        config, shape = ModelConfig.from_hf(self.fields(sizes), "the benchmark's model"), self.shape()
        prompts, limit = [shape.prompt] * shape.prompts, [shape.response] * shape.prompts
        samples = limit * shape.samples
        rollout = forward_flops(config, [shape.prompt + n for n in samples], sum(samples))
        return rollout + update_flops(config, prompts, limit, samples)


BASE = Point(prompts=4, response=64, vocabulary=8192, layers=4)
AXES = {
    "batch": [dataclasses.replace(BASE, prompts=n) for n in (4, 8, 16)],
    "response": [dataclasses.replace(BASE, response=n) for n in (64, 128, 256)],
    "vocabulary": [dataclasses.replace(BASE, vocabulary=n) for n in (8192, 16384, 32768, 65536)],
    "depth": [dataclasses.replace(BASE, layers=n) for n in (4, 8, 16)],
}
SIZES = models.small(0) | {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4}
_QUICK_BASE = Point(prompts=1, response=8, vocabulary=320, layers=1)
_QUICK = {"batch": [_QUICK_BASE, dataclasses.replace(_QUICK_BASE, prompts=2)]}


def sizes_of(axis: str, points: Sequence[Point]) -> list[int]:
    """The sizes of the points on an axis."""
    field = {"batch": "prompts", "depth": "layers"}.get(axis, axis)
    return [getattr(point, field) for point in points]


def growth(sizes: Sequence[int], rounds: Sequence[Sequence[float]], allowed: float, tolerance: float) -> dict[str, Any]:
    """The exponents of one quantity along one axis.

    Args:
      sizes: sizes of the points.
      rounds: the quantity at each point, in every round.
      allowed: the exponent that it may have.
      tolerance: how far above `allowed` counts as equal.
    """
    medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
    fitted = Spread.of([exponent(sizes, values) for values in rounds])
    last = exponent(sizes[-2:], medians[-2:])
    return {
        "values": medians,
        "exponent": fitted,
        "last": last,
        "allowed": allowed,
        "ok": max(fitted.median, last) <= allowed + tolerance,
    }


COLUMNS = ("axis", "quantity", "from", "to", "sizes", "p", "last", "allowed", "")


def line(axis: str, name: str, sizes: Sequence[int], found: dict[str, Any]) -> list[str]:
    """One row of the table."""
    unit = (lambda v: f"{v / 1e6:.1f} MB") if name.endswith("bytes") else (lambda v: f"{v:.2f} s")
    first, *_, end = map(unit, found["values"])
    verdict = "fine" if found["ok"] else "WORSE"
    fitted, last = found["exponent"].text(), f"{found['last']:.2f}"
    return [axis, name, first, end, f"{sizes[0]}–{sizes[-1]}", fitted, last, f"{found['allowed']:.2f}", verdict]


def main() -> None:
    arguments = command.parse(command.parser("benchmarks.growth", __doc__))
    axes, sizes = (_QUICK, models.TINY) if arguments.quick else (AXES, SIZES)
    points = list(dict.fromkeys(point for axis in axes.values() for point in axis))
    command.say_how_busy()
    with Worker("gadjax_step") as worker:
        turns, memory = {}, {}
        for number, point in enumerate(points):
            directories = worker.call("write_models", folder=str(models.FOLDER), fields=point.fields(sizes))
            worker.call("load", models=directories, fields=config_fields(point.shape()), name=str(number))
            batch = make_batch(point.shape(), ragged=False)[0]
            turns[point] = functools.partial(worker.call, "step", batch=batch, name=str(number))
            turns[point]()  # compiles
            memory[point] = worker.call("memory", name=str(number))
            command.progress(f"compiled {number + 1} of {len(points)}: {point}")
        found = interleave(turns, arguments.rounds)
    results, lines = {}, []
    for axis, along in axes.items():
        at = sizes_of(axis, along)
        allowed = max(1.0, exponent(at, [point.least(sizes) for point in along])) if axis == "response" else 1.0
        of_axis = {}
        for phase in PHASES:
            rounds = [[found[p][i]["metrics"][f"seconds/{phase}"] for p in along] for i in range(arguments.rounds)]
            of_axis[f"{phase}, seconds"] = growth(at, rounds, allowed, TOLERANCE["seconds"])
        for program in memory[along[0]]:
            quantity = [[memory[point][program] for point in along]]
            of_axis[f"{program}, bytes"] = growth(at, quantity, allowed, TOLERANCE["bytes"])
        results[axis] = {"sizes": at, "quantities": of_axis}
        lines += [line(axis, name, at, values) for name, values in of_axis.items()]
    print(report.table(COLUMNS, lines))
    report.write(arguments.out, results)


if __name__ == "__main__":
    run_command(main)
