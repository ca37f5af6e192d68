"""Runs of `gadjax.train` that are made once, what they cost, and the arms of a suite."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from benchmarks.harness.command import progress
from gadjax.config.check import resolve
from gadjax.files import replace
from gadjax.metrics import read_metrics
from gadjax.models import layouts
from gadjax.parallel import mesh as meshes
from gadjax.train import run
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.facts import network_model, read_workdir
from gadjax.workdir.network_export import export_network

_MARK = "finished.json"  # beside a run: its config, written when it is done


@dataclasses.dataclass(frozen=True)
class Cost:
    """What something took.

    Attributes:
      seconds: of its steps, or of its drawing, without compiling.
      sampled_tokens: drawn from a model of ours; answers of the teacher do not count.
    """

    seconds: float = 0.0
    sampled_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.sampled_tokens + other.sampled_tokens)


NOTHING = Cost()


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a suite, and where along it the generator is measured.

    Attributes:
      name: its row in the table.
      config: of the run.
      points: the generator's updates at which it is measured, with the run's step; step 0 is the start itself.
      start: the folder of the student that it starts from.
      changes: the arm that it is but for one change; "" for none.
      preparation: the cost of what it needs beside the start and the teacher's answers, such as a larger
        discriminator.
      make: makes what else it needs, which no other arm does, and returns the cost.
    """

    name: str
    config: ConfigDict
    points: Mapping[int, int]
    start: pathlib.Path
    changes: str = ""
    preparation: Cost = NOTHING
    make: Callable[[], Cost] = lambda: NOTHING


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains as `gadjax.train` does; a run that is finished already is left as it is.

    Raises:
      UserError: the config cannot work, or the folder holds another run.
    """
    if is_finished(config, workdir):
        return
    progress(f"run: {workdir}")
    run(config, workdir)
    replace(workdir / _MARK, _resolved(config).encode())


def is_finished(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether the folder holds the run of this config from its beginning to its end."""
    mark = workdir / _MARK
    return mark.exists() and mark.read_text() == _resolved(config)


def _resolved(config: ConfigDict) -> str:
    """The whole config as text."""
    return json.dumps(resolve(config).to_dict(), indent=2, sort_keys=True) + "\n"


def export(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the generator of a run's best checkpoint, or of the last one where none is the best, as a HF folder."""
    if (out / "config.json").exists():
        return
    config, facts = read_workdir(workdir)
    with contextlib.closing(Checkpoints.of(workdir, config)) as checkpoints:
        best = checkpoints.best()
        step = best[0] if best else checkpoints.steps()[-1]
        mesh = meshes.make_mesh(data=1, fsdp=-1, tensor=1)
        like = layouts.abstract_params(network_model(config, facts, "generator"), mesh)
        params = checkpoints.params(step, "generator", like)
    export_network(workdir, "generator", params, step, out)


def cost(workdir: pathlib.Path, last_step: int | None = None) -> Cost:
    """The cost of a run's steps, up to `last_step` or all of them."""
    found = Cost()
    for record in read_metrics(workdir / "metrics.jsonl"):
        if record["kind"] != "train" or (last_step is not None and record["step"] > last_step):
            continue
        seconds = {name: value for name, value in record.items() if name.startswith("seconds/")}
        spent = sum(seconds.values()) - 2 * seconds["seconds/compile"]  # it is a part of the others
        found += Cost(max(spent, 0.0), record["tokens"] if "response/length_mean" in record else 0)
    return found


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Yields a mapping that gets `seconds` when the block ends."""
    found: dict[str, float] = {}
    begun = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - begun


def read_json(path: pathlib.Path) -> Any:
    """The contents of a JSON file; None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
