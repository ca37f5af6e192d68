"""Where the time of sampling goes, part by part, beside the least that this machine could take for it.

    python -m benchmarks.sampling_parts                         # random weights in the shape of SmolLM2-135M
    python -m benchmarks.sampling_parts --slots=64 --model=DIR  # a Hugging Face directory

Rows of 64 prompt and 128 response tokens, as in `benchmarks.sampling`. A turn's seconds are divided by the times that
JAX's profiler saw of each operation, summed over threads: operations that ran side by side share the time.

"at least": for reading prompts, their operations at the rate of a large product; for products with weights, the same
products alone, for that number of rows, in the fastest of four ways; for attention, the bytes of the keys and values
that are stored at each step, at the rate of reading memory. The rest needs no time at least.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import command, models, report
from benchmarks.harness.limits import Limits, forward_flops, matrices
from benchmarks.harness.measure import Spread
from benchmarks.harness.parts import ATTENTION, HEAD, LAYERS, PARTS, PROMPTS
from benchmarks.harness.peers import Worker
from benchmarks.sampling import TEMPERATURE, prompts_of
from gadjax.errors import run_command
from gadjax.files import expand
from gadjax.models.architecture import ModelConfig

_GIGABYTES = 1.0  # of the array that is read to measure memory


def least(config: ModelConfig, limits: Limits, rows: int, prompt: int, limit: int) -> dict[str, float]:
    """The least seconds of each part."""
    reading = forward_flops(config, [prompt] * rows, 0) / limits.peak()
    *layers, head = matrices(config)
    stored = sum(prompt + step for step in range(limit))  # positions that a row attends to, over its steps
    heads = config.num_layers * config.num_kv_heads * config.head_dim
    kv_bytes = 2 * 4 * heads * rows * stored
    return {
        PROMPTS: reading,
        LAYERS: limit * limits.products(layers, rows),
        HEAD: limit * limits.products([head], rows),
        ATTENTION: kv_bytes / limits.bandwidth(_GIGABYTES),
    }


def measure(
    ours: Worker, limits: Limits, config: ModelConfig, sizes: tuple[int, int, int], rounds: int
) -> dict[str, Any]:
    """The seconds of each part and the least seconds, in every round."""
    rows, prompt, limit = sizes
    call = {"prompts": prompts_of(rows, prompt, config.vocab_size), "limit": limit, "temperature": TEMPERATURE}
    turns = []
    for _ in range(rounds):
        turn = ours.call("parts", **call, slots=rows, eos=[])
        scale = turn["seconds"] / sum(turn["parts"].values())
        parts = {name: scale * turn["parts"].get(name, 0.0) for name in PARTS}
        turns.append({"seconds": turn["seconds"], "parts": parts, "least": least(config, limits, *sizes)})
    return {"slots": rows, "tokens": rows * limit, "turns": turns}


def lines(result: dict[str, Any]) -> list[list[str]]:
    """Rows of the table."""
    turns, found = result["turns"], []
    for name in PARTS:
        taken = Spread.of([turn["parts"][name] for turn in turns])
        share = Spread.of([turn["parts"][name] / turn["seconds"] for turn in turns])
        bound = Spread.of([turn["least"][name] for turn in turns]).text() if name in turns[0]["least"] else "–"
        found.append([f"{result['slots']} slots: {name}", taken.text(), f"{share.median:.0%}", bound])
    whole = Spread.of([turn["seconds"] for turn in turns])
    bound = Spread.of([sum(turn["least"].values()) for turn in turns])
    return [*found, [f"{result['slots']} slots: all", whole.text(), "100%", bound.text()]]


COLUMNS = ("part", "seconds", "share", "at least")


def main() -> None:
    made = command.parser("benchmarks.sampling_parts", __doc__)
    made.add_argument("--model", type=expand, help="a Hugging Face directory; default: random weights")
    made.add_argument("--slots", default="16,64", help="rows, comma-separated; default 16,64")
    arguments = command.parse(made)
    slots, sizes, fields = [int(part) for part in arguments.slots.split(",")], (64, 128), models.SMOLLM2
    if arguments.quick:
        slots, sizes, fields = [2], (8, 12), models.TINY
    command.say_how_busy()
    with Worker("gadjax_sampling") as ours, Worker("machine") as machine:
        model = arguments.model or ours.call("write_models", folder=str(models.FOLDER), fields=fields)["generator"]
        config = ModelConfig.from_hf(models.read_fields(model), str(model))
        ours.call("load", path=str(model))
        limits = Limits(machine, quick=arguments.quick)
        results = [measure(ours, limits, config, (count, *sizes), arguments.rounds) for count in slots]
    print(report.table(COLUMNS, [line for result in results for line in lines(result)]))
    report.write(arguments.out, results)


if __name__ == "__main__":
    run_command(main)
