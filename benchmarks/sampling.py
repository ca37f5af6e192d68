"""Sampling, tokens a second: gadjax beside Hugging Face `generate`, same weights, float32, in one run.

    python -m benchmarks.sampling --setup                       # once: torch and transformers, in their own environment
    python -m benchmarks.sampling                               # random weights in the shape of SmolLM2-135M
    python -m benchmarks.sampling --model=DIR                   # a Hugging Face directory

64 prompt tokens, up to 128 response tokens, temperature 0.8. "fixed": B rows of 128 tokens, EOS off on both sides.
"skewed": 8 B rows for B slots, half of them at most a sixth of the limit long (`benchmarks/harness/lengths.py`); the
lengths are the same on both sides. `generate` takes them in batches of B in the order of arrival, and a batch ends with
its longest row. In each round its better cache counts, dynamic or static. gadjax returns log-probs too.

"of the machine": the least time of the same products, measured in the same round, over gadjax's time. Skewed lengths
are held against slots that are never empty.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.harness import command, models, peers, report
from benchmarks.harness.lengths import choose_ends
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import Spread, interleave, pairwise
from benchmarks.harness.peers import Worker
from gadjax.errors import UserError, run_command
from gadjax.files import expand
from gadjax.models.architecture import ModelConfig

CACHES = ("dynamic", "static")
TEMPERATURE = 0.8
MEDIAN = 1 / 6  # of the limit
ROWS_PER_SLOT = 8


def prompts_of(rows: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random prompts without token 0, the padding."""
    return np.random.default_rng(rows).integers(1, vocabulary, (rows, length)).tolist()


class Case:
    """One line of the table, ready to be measured."""

    def __init__(self, lengths: str, slots: int, sizes: tuple[int, int], config: ModelConfig, ours: Worker):
        prompt, limit = sizes
        self.name = f"{lengths}, {slots}"
        self.slots, self.config, self.limit = slots, config, limit
        rows = slots * (ROWS_PER_SLOT if lengths == "skewed" else 1)
        self.common = {
            "prompts": prompts_of(rows, prompt, config.vocab_size),
            "limit": limit,
            "temperature": TEMPERATURE,
        }
        self.eos: list[int] = []
        self.lengths = [limit] * rows
        self.mismatches = 0
        if lengths == "skewed":
            free = ours.call("run", **self.common, slots=slots, eos=[])["answers"]
            self.eos = choose_ends(np.array(free), config.vocab_size, MEDIAN * limit).tolist()
            self.lengths = ours.call("run", **self.common, slots=slots, eos=self.eos)["lengths"]

    def ours(self, worker: Worker) -> dict[str, Any]:
        """gadjax's turn. Rounding may end a row at another token than the first time."""
        turn = worker.call("run", **self.common, slots=self.slots, eos=self.eos)
        self.mismatches += sum(a != b for a, b in zip(turn["lengths"], self.lengths, strict=True))
        return {name: turn[name] for name in ("seconds", "cpu_seconds", "tokens")}

    def theirs(self, worker: Worker, cache: str) -> dict[str, Any]:
        """One turn of `generate`."""
        lengths = self.lengths if self.eos else None
        return worker.call("run", **self.common, batch=self.slots, cache=cache, lengths=lengths)

    def least(self, limits: Limits) -> dict[str, Any]:
        """The machine's turn: seconds of the matrix products alone, with every slot at work."""
        tokens = sum(self.lengths)
        prompts = [len(prompt) for prompt in self.common["prompts"]]
        seconds = limits.sampling(self.config, self.slots, tokens / self.slots, prompts)
        return {"seconds": seconds, "tokens": tokens}


def measure(case: Case, ours: Worker, theirs: Worker | None, limits: Limits, rounds: int) -> dict[str, Any]:
    """Runs all turns of a case and summarises them."""
    sides = {"gadjax": functools.partial(case.ours, ours), "machine": functools.partial(case.least, limits)}
    if theirs:
        sides |= {cache: functools.partial(case.theirs, theirs, cache) for cache in CACHES}
    first = {name: turn() for name, turn in sides.items()}  # compiles
    case.mismatches = 0
    found = interleave(sides, rounds)
    rates = {name: [turn["tokens"] / turn["seconds"] for turn in turns] for name, turns in found.items()}
    result = {
        "case": case.name,
        "rows": len(case.lengths),
        "median_length": float(np.median(case.lengths)),
        "eos_ids": len(case.eos),
        "rows_of_other_length": case.mismatches,
        "first_seconds": {name: turn["seconds"] for name, turn in first.items()},
        "turns": found,
        "tokens_per_second": {name: Spread.of(values) for name, values in rates.items()},
        "of_the_machine": pairwise(rates["gadjax"], rates["machine"]),
    }
    if theirs:
        best = [max(pair) for pair in zip(*(rates[cache] for cache in CACHES), strict=True)]
        result["ratio"] = pairwise(rates["gadjax"], best)
    return result


def line(result: dict[str, Any]) -> list[str]:
    """One row of the table."""
    rates = result["tokens_per_second"]
    others = [rates[cache].text(".0f") if cache in rates else "–" for cache in CACHES]
    ratio = result["ratio"].text() if "ratio" in result else "–"
    cells = [result["case"], str(result["rows"]), f"{result['median_length']:.0f}", rates["gadjax"].text(".0f")]
    return [*cells, *others, ratio, result["of_the_machine"].text(".0%")]


COLUMNS = ("lengths, slots", "rows", "p50", "gadjax tok/s", "HF dynamic", "HF static", "gadjax / HF", "of the machine")


def main() -> None:
    made = command.parser("benchmarks.sampling", __doc__, peers.TORCH)
    made.add_argument("--model", type=expand, help="a Hugging Face directory; default: random weights")
    made.add_argument("--slots", default="1,16,64", help="B, comma-separated; default 1,16,64")
    made.add_argument("--lengths", default="fixed,skewed", help="which of the two, comma-separated; default both")
    arguments = command.parse(made, peers.TORCH)
    if arguments is None:
        return
    slots, sizes, fields = [int(part) for part in arguments.slots.split(",")], (64, 128), models.SMOLLM2
    if arguments.quick:
        slots, sizes, fields = [1, 2], (8, 12), models.TINY
    kinds = arguments.lengths.split(",")
    if unknown := set(kinds) - {"fixed", "skewed"}:
        raise UserError(f"--lengths={arguments.lengths}: {sorted(unknown)[0]!r} is neither fixed nor skewed")
    command.say_how_busy()
    results = []
    with command.workers("gadjax_sampling", "hf_sampling", arguments) as (ours, theirs), Worker("machine") as machine:
        model = arguments.model or ours.call("write_models", folder=str(models.FOLDER), fields=fields)["generator"]
        config = ModelConfig.from_hf(models.read_fields(model), str(model))
        limits = Limits(machine, quick=arguments.quick)
        for side in filter(None, (ours, theirs)):
            side.call("load", path=str(model))
        for kind in kinds:
            for count in slots:
                if kind == "skewed" and count == 1:
                    continue  # a row that ends leaves nobody waiting
                case = Case(kind, count, sizes, config, ours)
                results.append(measure(case, ours, theirs, limits, arguments.rounds))
                command.progress(" ".join(line(results[-1])))
        versions = theirs.call("versions", names=peers.TORCH.packages) if theirs else None
    print(report.table(COLUMNS, [line(result) for result in results]))
    report.write(arguments.out, {"model": str(arguments.model or "random weights"), "cases": results}, versions)


if __name__ == "__main__":
    run_command(main)
