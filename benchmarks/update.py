"""The two updates of a GAD step: gadjax beside the same step in torch, same weights, float32, in one run.

    python -m benchmarks.update --setup                         # once: torch and transformers, in their own environment
    python -m benchmarks.update

D's Bradley-Terry update on all pairs, then G's policy gradient with the k3 KL to a reference, on given samples. gadjax
runs the trainer's steps, packing included; torch is written plainly with transformers and autograd
(`benchmarks/workers/torch_update.py`). gadjax keeps the results of matrix products for the backward pass
(config.remat=dots). "full": every sequence at its limit. "ragged": half of the responses below a
quarter of theirs. On each side's first step, from equal weights, losses and gradient norms must agree.

"of the machine": the rate of the operations that are needed at least (no padding, no remat) over that of a large
matrix product, measured in the same round.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.harness import command, models, peers, report
from benchmarks.harness.batches import Shape, make_batch
from benchmarks.harness.limits import Limits, update_flops
from benchmarks.harness.measure import Spread, interleave, pairwise
from benchmarks.harness.peers import Worker
from gadjax.errors import run_command
from gadjax.models.architecture import ModelConfig

CHECKED = ("discriminator/loss", "discriminator/grad_norm", "generator/loss", "generator/kl", "generator/grad_norm")
TOLERANCE = 1e-3  # of sums over thousands of float32 terms in another order; a tenth of that was seen
_QUICK = Shape(2, 2, 16, 16, models.TINY["vocab_size"])
# The config's own fields, and torch's names for them.
LEARNING_RATE, TEMPERATURE, KL = 1e-6, 0.8, 1e-3


def config_fields(shape: Shape) -> dict[str, Any]:
    """The config fields of gadjax's side."""
    rates = {f"gad.{network}_learning_rate": LEARNING_RATE for network in ("generator", "discriminator")}
    return shape.fields(**rates, **{"rollout.temperature": TEMPERATURE, "gad.kl_coefficient": KL})


def torch_settings(bucket: int) -> dict[str, Any]:
    """The settings of torch's side: the same, with the optimizer of `configs/base.py`."""
    optimizer = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "clip_norm": 0.2}
    method = {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "kl_coefficient": KL}
    return optimizer | method | {"bucket": bucket}


def disagreement(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Relative differences of the figures of one step from equal weights. All must be below `TOLERANCE`.

    Raises:
      RuntimeError: the sides compute different things, so that their times cannot be compared.
    """
    found = {name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-3) for name in CHECKED}
    if bad := {name: (ours[name], theirs[name]) for name in CHECKED if not found[name] < TOLERANCE}:
        raise RuntimeError(f"gadjax and torch computed different things: {bad}")
    return found


def measure(kind: str, shape: Shape, sides: dict[str, Worker], limits: Limits, config: ModelConfig, rounds: int):
    """Runs all turns of one kind of lengths and summarises them."""
    batch, samples = make_batch(shape, ragged=kind == "ragged")
    lengths = [n for group in samples["lengths"] for n in group]
    flops = update_flops(config, batch["prompt_length"], batch["teacher_length"], lengths)
    turns = {name: functools.partial(side.call, "step", batch=batch, samples=samples) for name, side in sides.items()}
    first = {name: turn() for name, turn in turns.items()}  # compiles, and starts from equal weights
    found = interleave(turns | {"machine": lambda: {"seconds": flops / limits.peak()}}, rounds)
    seconds = {name: [turn["seconds"] for turn in found[name]] for name in found}
    result = {
        "lengths": kind,
        "response_tokens": sum(lengths),
        "flops": flops,
        "first_seconds": {name: turn["seconds"] for name, turn in first.items()},
        "turns": found,
        "seconds": {name: Spread.of(values) for name, values in seconds.items()},
        "of_the_machine": pairwise(seconds["machine"], seconds["gadjax"]),
    }
    if "torch" in sides:
        result["ratio"] = pairwise(seconds["torch"], seconds["gadjax"])
        result["torch_of_the_machine"] = pairwise(seconds["machine"], seconds["torch"])
        result["first_metrics"] = {name: turn["metrics"] for name, turn in first.items()}
    return result


COLUMNS = ("lengths", "response tokens", "gadjax, s", "torch, s", "torch / gadjax", "of the machine", "torch's share")


def line(result: dict[str, Any]) -> list[str]:
    """One row of the table."""
    seconds = result["seconds"]
    theirs = seconds["torch"].text() if "torch" in seconds else "–"
    ratio = result["ratio"].text() if "ratio" in result else "–"
    share = result["torch_of_the_machine"].text(".0%") if "ratio" in result else "–"
    cells = [result["lengths"], str(result["response_tokens"]), seconds["gadjax"].text(), theirs, ratio]
    return [*cells, result["of_the_machine"].text(".0%"), share]


def main() -> None:
    made = command.parser("benchmarks.update", __doc__, peers.TORCH)
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M's shape, not 8 layers of 512 channels")
    made.add_argument("--bucket", type=int, default=4, help="rows that torch computes at once; default 4")
    arguments = command.parse(made, peers.TORCH)
    if arguments is None:
        return
    fields = models.SMOLLM2 if arguments.smollm2 else models.small(32_000)
    fields = models.TINY if arguments.quick else fields
    shape = _QUICK if arguments.quick else Shape(4, 4, 64, 128, fields["vocab_size"])
    command.say_how_busy()
    results, config = [], ModelConfig.from_hf(fields, "the benchmark's model")
    for kind in ("ragged",) if arguments.quick else ("full", "ragged"):  # each from the same weights, in new processes
        with command.workers("gadjax_step", "torch_update", arguments) as (ours, theirs), Worker("machine") as machine:
            directories = ours.call("write_models", folder=str(models.FOLDER), fields=fields)
            ours.call("load", models=directories, fields=config_fields(shape))
            sides = {"gadjax": ours}
            if theirs:
                theirs.call("load", models=directories, settings=torch_settings(arguments.bucket))
                sides["torch"] = theirs
            limits = Limits(machine, quick=arguments.quick)
            results.append(measure(kind, shape, sides, limits, config, arguments.rounds))
            results[-1]["peak_memory"] = {name: side.call("peak_memory") for name, side in sides.items()}
            versions = theirs.call("versions", names=peers.TORCH.packages) if theirs else None
        if theirs:
            metrics = results[-1]["first_metrics"]
            results[-1]["disagreement"] = disagreement(metrics["gadjax"], metrics["torch"])
    print(report.table(COLUMNS, [line(result) for result in results]))
    if worst := max((value for result in results for value in result.get("disagreement", {}).values()), default=None):
        print(f"losses, KL and gradient norms of the first steps agree within {worst:.1e}")
    report.write(arguments.out, {"model": fields, "cases": results}, versions)


if __name__ == "__main__":
    run_command(main)
