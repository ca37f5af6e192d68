"""One whole step: gadjax's GAD step beside google-tunix's GRPO step, same weights, float32, in one run.

    python -m benchmarks.step_tunix --setup                     # once: google-tunix, in its own environment
    python -m benchmarks.step_tunix

GAD: rollout, D's scores and update, G's update with the KL to a reference, as the trainer runs it. GRPO: rollout, G's
update with the same KL; it has no D, and a reward that costs nothing. 8 layers of 512 channels (random weights), 4
prompts x 4 samples, 64 prompt and 128 response tokens, EOS off; a vocabulary of 32,000 and one of 152,000 entries. Each
side runs in a process of its own; "peak" is the most memory of that process, including the compiler's. tunix updates on
whole batches, its default; --tunix_micro_batch=1 takes one prompt's samples at a time, for less memory. gadjax keeps
the results of matrix products for the backward pass (config.remat=dots).

"of the machine": what the step's operations take at the rates of this machine, measured in the same round, over
gadjax's time: decoding at that of its products by so many rows, the rest at that of a large product.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.harness import command, models, peers, report
from benchmarks.harness.batches import Shape, make_batch
from benchmarks.harness.limits import Limits, update_flops
from benchmarks.harness.measure import Spread, interleave, pairwise
from benchmarks.harness.peers import Worker
from benchmarks.update import config_fields, torch_settings
from gadjax.errors import run_command
from gadjax.models.architecture import ModelConfig

VOCABULARIES = (32_000, 152_000)


def least_seconds(limits: Limits, config: ModelConfig, shape: Shape) -> float:
    """The least seconds of a step: each prompt read once, its samples decoded together, both updates."""
    rows, limit = shape.prompts * shape.samples, shape.response
    sampling = limits.sampling(config, rows, limit, [shape.prompt] * shape.prompts)
    prompts, teacher = [shape.prompt] * shape.prompts, [limit] * shape.prompts
    return sampling + update_flops(config, prompts, teacher, [limit] * rows) / limits.peak()


def measure(shape: Shape, fields: dict[str, Any], arguments: Any) -> dict[str, Any]:
    """Runs all turns at one vocabulary and summarises them."""
    config = ModelConfig.from_hf(fields, "the benchmark's model")
    batch, _ = make_batch(shape, ragged=False)
    with command.workers("gadjax_step", "tunix_side", arguments) as (ours, theirs), Worker("machine") as machine:
        with Worker("gadjax_step") as writer:  # whose memory is not measured
            directories = writer.call("write_models", folder=str(models.FOLDER), fields=fields)
        ours.call("load", models=directories, fields=config_fields(shape))
        processes, sides = {"gadjax": ours}, {"gadjax": functools.partial(ours.call, "step", batch=batch)}
        if theirs:
            sizes = {name: getattr(shape, name) for name in ("prompts", "samples", "prompt", "response")}
            settings = torch_settings(0) | {"micro_batch": arguments.tunix_micro_batch}
            path, reference = directories["generator"], directories["reference"]
            theirs.call("load_learner", path=path, reference=reference, fields=fields, shape=sizes, settings=settings)
            processes["tunix"] = theirs
            sides["tunix"] = functools.partial(theirs.call, "step", prompts=batch["prompt"])
        first = {name: turn()["seconds"] for name, turn in sides.items()}  # compiles
        limits = Limits(machine, quick=arguments.quick)
        least = {"machine": lambda: {"seconds": least_seconds(limits, config, shape)}}
        found = interleave(sides | least, arguments.rounds)
        memory = {name: worker.call("peak_memory") for name, worker in processes.items()}
        versions = theirs.call("versions", names=peers.TUNIX.packages) if theirs else None
    seconds = {name: [turn["seconds"] for turn in turns] for name, turns in found.items()}
    result = {
        "vocabulary": shape.vocabulary,
        "first_seconds": first,
        "turns": found,
        "seconds": {name: Spread.of(values) for name, values in seconds.items()},
        "of_the_machine": pairwise(seconds["machine"], seconds["gadjax"]),
        "peak_memory": memory,
        "versions": versions,
    }
    if theirs:
        result["ratio"] = pairwise(seconds["gadjax"], seconds["tunix"])
        result["memory_ratio"] = memory["gadjax"] / memory["tunix"]
    return result


COLUMNS = (
    "step",
    "vocabulary",
    "s",
    "time, gadjax / tunix",
    "peak, GB",
    "peak ratio",
    "of the machine",
    "first step, s",
)


def lines(result: dict[str, Any]) -> list[list[str]]:
    """Rows of the table for one vocabulary."""
    made = []
    for name, label in (("gadjax", "gadjax GAD"), ("tunix", "tunix GRPO")):
        if name not in result["seconds"]:
            continue
        ratios = ["", "", ""]
        if name == "gadjax":
            ratio = result["ratio"].text() if "ratio" in result else "–"
            memory = f"{result['memory_ratio']:.2f}" if "ratio" in result else "–"
            ratios = [ratio, memory, result["of_the_machine"].text(".0%")]
        peak, first = f"{result['peak_memory'][name] / 1e9:.1f}", f"{result['first_seconds'][name]:.1f}"
        cells = [label, f"{result['vocabulary']:,}", result["seconds"][name].text(".1f"), ratios[0]]
        made.append([*cells, peak, *ratios[1:], first])
    return made


def main() -> None:
    made = command.parser("benchmarks.step_tunix", __doc__, peers.TUNIX)
    made.add_argument("--vocabularies", help="comma-separated; default 32000,152000")
    made.add_argument("--tunix_micro_batch", type=int, help="prompts of each of tunix's micro-batches; default all")
    arguments = command.parse(made, peers.TUNIX)
    if arguments is None:
        return
    sizes = [int(part) for part in arguments.vocabularies.split(",")] if arguments.vocabularies else VOCABULARIES
    command.say_how_busy()
    results = []
    for vocabulary in (models.TINY["vocab_size"],) if arguments.quick else sizes:
        fields = models.TINY if arguments.quick else models.small(vocabulary)
        shape = Shape(2, 2, 8, 12, vocabulary) if arguments.quick else Shape(4, 4, 64, 128, vocabulary)
        results.append(measure(shape, fields, arguments))
        for cells in lines(results[-1]):
            command.progress(" ".join(cells))
    print(report.table(COLUMNS, [cells for result in results for cells in lines(result)]))
    report.write(arguments.out, {"cases": results}, results[0]["versions"])


if __name__ == "__main__":
    run_command(main)
