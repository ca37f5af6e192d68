"""Does the GAD stage of the demo help? SeqKD then GAD against SeqKD alone, at equal generator updates, over seeds.

    python benchmarks/demo_seeds.py --seeds=0,1,2 --out=/tmp/demo_seeds

Both arms of a seed start from the same random weights and see the same batches; the SeqKD arm makes as many generator
updates as the other's stages together. Runs that are finished are read, not repeated. Prints the held-out figures of
every run, and of each figure the mean difference GAD - SeqKD with its range over seeds; writes results.json.
"""

import argparse
import json
import pathlib
import statistics

from configs import demo
from gadjax.train import run

FIGURES = ("nll", "rouge_l", "ngram_f1_1", "ngram_f1_2", "length_mean", "two_sample")


def arms(seed: int):
    """The two configs of a seed, by name."""
    gad = demo.get_config()
    gad.seed = seed
    seqkd = demo.get_config()
    seqkd.seed = seed
    warmup = gad.warmup.steps - gad.warmup.discriminator_only_steps if gad.warmup.train_generator else 0
    seqkd.stages = ("seqkd",)
    seqkd.seqkd.steps = gad.seqkd.steps + warmup + gad.gad.steps
    return {"gad": gad, "seqkd": seqkd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the runs and results.json")
    arguments = parser.parse_args()

    results = {}
    for seed in map(int, arguments.seeds.split(",")):
        for arm, config in arms(seed).items():
            figures = run(config, arguments.out / f"{arm}-{seed}")
            results[f"{arm}-{seed}"] = figures[config.stages[-1]]
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    print("run".ljust(10), *(name.rjust(12) for name in FIGURES))
    for name, figures in results.items():
        print(name.ljust(10), *(f"{figures[figure]:12.4f}" for figure in FIGURES))
    seeds = [name.split("-")[1] for name in results if name.startswith("gad-")]
    for figure in FIGURES:
        gaps = [results[f"gad-{seed}"][figure] - results[f"seqkd-{seed}"][figure] for seed in seeds]
        print(f"{figure}: GAD - SeqKD {statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})")


if __name__ == "__main__":
    main()
