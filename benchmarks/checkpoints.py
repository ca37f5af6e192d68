"""What saving costs a run: steps with and without saves, in turns, at a stated cadence.

    python -m benchmarks.checkpoints --rounds=3           # a save every 3 steps; 10 minutes on two cores
    python -m benchmarks.checkpoints --every=100 --folder=/mnt/disk

GAD steps of the trainer, 4 prompts x 4 samples of 64 + 128 tokens, 8 layers of 512 channels, and its checkpoints: both
networks with their moments, and the reference. A turn is a run from one save to the next: the arrays are copied, the
files are written while the next steps run, and the turn ends when they are complete. The other side makes the same
steps and saves nothing.

"waiting" is the share of the run for which the loop stands still. "slower" is all that saving costs, including the time
that the writing threads take from the steps; on a machine whose processor trains too, that is most of it. Both shrink
with the cadence: "at 100" is the share of 100 steps that is lost, for the default of config.checkpoint.every.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile

from benchmarks.harness import command, models, report
from benchmarks.harness.batches import Shape, make_batch
from benchmarks.harness.measure import Spread, interleave, pairwise
from benchmarks.harness.peers import Worker
from benchmarks.update import config_fields
from gadjax.config import default_config
from gadjax.errors import UserError, run_command
from gadjax.files import expand

DEFAULT_CADENCE = default_config().checkpoint.every  # steps
COLUMNS = ("every", "step, s", "checkpoint, MB", "a save, s of waiting", "waiting", "slower")


def main() -> None:
    made = command.parser("benchmarks.checkpoints", __doc__)
    made.add_argument("--every", type=int, help="steps from one save to the next; default: 3, with --quick 2")
    made.add_argument("--folder", type=expand, help="to save into, on the disk to measure; default: a temporary one")
    made.add_argument("--smollm2", action="store_true", help="SmolLM2-135M's shape, not 8 layers of 512 channels")
    arguments = command.parse(made)
    every = (2 if arguments.quick else 3) if arguments.every is None else arguments.every
    if every < 1:
        raise UserError(f"--every={every}: at least 1")
    if arguments.folder and not arguments.folder.is_dir():
        raise UserError(f"--folder={arguments.folder}: no such folder; make it, or name another one")
    fields = models.SMOLLM2 if arguments.smollm2 else models.small(32_000)
    fields = models.TINY if arguments.quick else fields
    shape = Shape(2, 2, 8, 12, fields["vocab_size"]) if arguments.quick else Shape(4, 4, 64, 128, fields["vocab_size"])
    batch = make_batch(shape, ragged=False)[0]
    command.say_how_busy()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, Worker("gadjax_saving") as worker:
        directories = worker.call("write_models", folder=str(models.FOLDER), fields=fields)
        folder = str(pathlib.Path(name) / "run")
        worker.call("load", models=directories, fields=config_fields(shape), folder=folder)
        turn = functools.partial(worker.call, "turn", batch=batch)
        turn(steps=1, save=True)  # compiles
        sides = {"saving": functools.partial(turn, steps=every, save=True)}
        sides["not saving"] = functools.partial(turn, steps=every, save=False)
        found = interleave(sides, arguments.rounds)
        worker.call("close")
    seconds = {side: [one["seconds"] for one in turns] for side, turns in found.items()}
    waiting = [one["waiting"] for one in found["saving"]]
    slower = pairwise(seconds["saving"], seconds["not saving"])
    result = {
        "every": every,
        "model": fields,
        "bytes": found["saving"][-1]["bytes"],
        "turns": found,
        "step_seconds": Spread.of([value / every for value in seconds["not saving"]]),
        "waiting_seconds": Spread.of(waiting),
        "waiting": pairwise(waiting, seconds["saving"]),
        "slower": Spread(*(value - 1 for value in (slower.median, slower.low, slower.high))),
    }
    result["slower_by_default"] = result["slower"].median * every / DEFAULT_CADENCE
    cells = [
        str(every),
        result["step_seconds"].text(),
        f"{result['bytes'] / 1e6:.0f}",
        result["waiting_seconds"].text(),
        result["waiting"].text(".1%"),
        result["slower"].text(".1%"),
        f"{result['slower_by_default']:.1%}",
    ]
    print(report.table([*COLUMNS, f"slower at {DEFAULT_CADENCE}"], [cells]))
    report.write(arguments.out, result)


if __name__ == "__main__":
    run_command(main)
