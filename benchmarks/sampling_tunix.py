"""Sampling, tokens a second: gadjax beside google-tunix's vanilla sampler, same weights, float32, in one run.

    python -m benchmarks.sampling_tunix --setup                 # once: google-tunix, in its own environment
    python -m benchmarks.sampling_tunix

8 layers of 512 channels (random weights), 32,000 entries, 4 prompts x 4 samples, 64 prompt and 128 response tokens at
temperature 0.8, EOS off; both return log-probs. gadjax samples as its trainer does and reads each prompt once for
its samples; tunix is given it four times, as its learners do. Both give greedy answers first: the share of equal tokens
shows that both compute the same model (with random weights, rounding may change an answer).

"of the machine": the least time of the same products, measured in the same round, over gadjax's time.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.harness import command, models, peers, report
from benchmarks.harness.batches import Shape, make_batch
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import Spread, interleave, pairwise
from benchmarks.harness.peers import Worker
from benchmarks.update import TEMPERATURE, config_fields
from gadjax.errors import run_command
from gadjax.models.architecture import ModelConfig


def prompts_of(shape: Shape) -> list[list[int]]:
    """Each prompt, repeated for each of its samples."""
    ids = np.random.default_rng(0).integers(1, shape.vocabulary, (shape.prompts, shape.prompt))
    return np.repeat(ids, shape.samples, axis=0).tolist()


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of equal tokens."""
    return float(np.mean(np.array(ours) == np.array(theirs)))


def measure(shape: Shape, sides: dict[str, Any], limits: Limits, config: ModelConfig, rounds: int) -> dict[str, Any]:
    """Runs all turns and summarises them."""
    rows = shape.prompts * shape.samples
    least = functools.partial(limits.sampling, config, rows, shape.response, [shape.prompt] * shape.prompts)
    first = {name: turn()["seconds"] for name, turn in sides.items()}  # compiles
    tokens = rows * shape.response
    found = interleave(sides | {"machine": lambda: {"seconds": least(), "tokens": tokens}}, rounds)
    rates = {name: [turn["tokens"] / turn["seconds"] for turn in turns] for name, turns in found.items()}
    result = {
        "first_seconds": first,
        "turns": found,
        "tokens_per_second": {name: Spread.of(values) for name, values in rates.items()},
        "of_the_machine": pairwise(rates["gadjax"], rates["machine"]),
    }
    return result | ({"ratio": pairwise(rates["gadjax"], rates["tunix"])} if "tunix" in rates else {})


COLUMNS = ("sampler", "tok/s", "gadjax / tunix", "of the machine", "first call, s")


def lines(result: dict[str, Any]) -> list[list[str]]:
    """The rows of the table."""
    rates, first = result["tokens_per_second"], result["first_seconds"]
    ratio = result["ratio"].text() if "ratio" in result else "–"
    ours = [
        "gadjax",
        rates["gadjax"].text(".0f"),
        ratio,
        result["of_the_machine"].text(".0%"),
        f"{first['gadjax']:.1f}",
    ]
    theirs = ["tunix", rates["tunix"].text(".0f"), "", "", f"{first['tunix']:.1f}"] if "tunix" in rates else None
    return [ours, *filter(None, [theirs])]


def main() -> None:
    arguments = command.parse(command.parser("benchmarks.sampling_tunix", __doc__, peers.TUNIX), peers.TUNIX)
    if arguments is None:
        return
    fields = models.TINY if arguments.quick else models.small(32_000)
    shape = Shape(2, 2, 8, 12, fields["vocab_size"]) if arguments.quick else Shape(4, 4, 64, 128, fields["vocab_size"])
    config, prompts = ModelConfig.from_hf(fields, "the benchmark's model"), prompts_of(shape)
    common = {"prompts": prompts, "limit": shape.response}
    batch, greedy = make_batch(shape, ragged=False)[0] | {"prompt": prompts[:: shape.samples]}, None
    command.say_how_busy()
    with command.workers("gadjax_step", "tunix_side", arguments) as (ours, theirs), Worker("machine") as machine:
        directories = ours.call("write_models", folder=str(models.FOLDER), fields=fields)
        ours.call("load", models=directories, fields=config_fields(shape))
        sides = {"gadjax": functools.partial(ours.call, "sample", batch=batch)}
        if theirs:
            path = directories["generator"]
            theirs.call("load_sampler", path=path, fields=fields, cache=shape.prompt + shape.response)
            sides["tunix"] = functools.partial(theirs.call, "sample", **common, temperature=TEMPERATURE)
            with Worker("gadjax_sampling") as checked:
                checked.call("load", path=path)
                answers = checked.call("run", **common, temperature=0.0, slots=len(prompts), eos=[])["answers"]
            greedy = agreement(answers, theirs.call("sample", **common, temperature=0.0)["answers"])
        result = measure(shape, sides, Limits(machine, quick=arguments.quick), config, arguments.rounds)
        versions = theirs.call("versions", names=peers.TUNIX.packages) if theirs else None
    print(report.table(COLUMNS, lines(result)))
    if greedy is not None:
        print(f"greedy answers agree in {greedy:.1%} of their tokens")
    report.write(arguments.out, result | {"greedy_agreement": greedy, "model": fields}, versions)


if __name__ == "__main__":
    run_command(main)
