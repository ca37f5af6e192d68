r"""Compiles every program of a run for machines that are not here, and says whether it fits and what it costs.

    python -m gadjax.plan --config=configs/qwen14b.py --topology=v5p:2x4x4
    python -m gadjax.plan --config=configs/qwen7b.py --topology=h100:1x8 --suggest
    python -m gadjax.plan --config=configs/qwen7b.py --topology=h100:1x8 --rows=200000 --price=2.5

Only the student's config.json is read. The exit status is 1 if the run does not fit. TPUs need libtpu
(pip install 'gadjax[plan]'), CUDA GPUs need jax[cuda13], cpu:N needs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from absl import flags

from gadjax import commands, files
from gadjax.callable_module import make_callable
from gadjax.errors import UserError
from gadjax.planning.targets import devices, parse_topology, prepare_process

if TYPE_CHECKING:
    from ml_collections import ConfigDict
FLAGS = flags.FLAGS
_CONFIG_FILE = """import json

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.loads({text!r}))
"""


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    commands.define_config()
    flags.DEFINE_string(
        "topology", None, "CHIP:SHAPE: v5p:2x4x4, v6e:8x8, v5e:16x16, h100:2x8, h200:1x8, a100:1x8, l4:1, cpu:8."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")
    flags.DEFINE_bool("details", False, "Print each program's operations, traffic, largest arrays and collectives too.")
    flags.DEFINE_integer(
        "rows", 0, "Usable rows of data.train: the run's hours, where stages are in epochs.", lower_bound=0
    )
    flags.DEFINE_float("price", None, "Price of a device and an hour: the run's cost.", lower_bound=0.0)
    flags.DEFINE_bool(
        "suggest", False, "Search mesh, micro-batches, rollout slots, remat and offload for the fastest plan that fits."
    )


def run(
    config: ConfigDict | str | os.PathLike[str],
    topology: str,
    *,
    suggest: bool = False,
    rows: int = 0,
    price: float | None = None,
) -> dict[str, Any]:
    """Plans a run and returns what --json prints: whether it `fits`, `memory`, `step_seconds`, `programs`, and more.

    `gadjax.plan(...)` is this function. It compiles in a process of its own, which looks for no accelerator: JAX here
    stays as it is.

    Args:
      config: the name of a shipped config, the path of a file with `get_config()`, or a `ConfigDict`.
      topology: CHIP:SHAPE, as --topology takes it: "v5p:2x4x4", "h100:2x8", "cpu:8".
      suggest: searches for the fastest settings that fit, and returns them as `suggested`.
      rows: rows of `data.train`, which give the run's `hours` where stages are in epochs.
      price: of a device and an hour, in any currency, which gives the run's `cost`.

    Raises:
      UserError: the config or the topology cannot work, or the package that compiles for it is not installed.
    """
    from ml_collections import ConfigDict

    from gadjax.config import load_config

    parse_topology(topology)
    values = (config if isinstance(config, ConfigDict) else load_config(config)).to_dict()
    package = str(pathlib.Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "config.py"
        file.write_text(_CONFIG_FILE.format(text=json.dumps(values)), encoding="utf-8")
        command = [sys.executable, "-m", "gadjax.plan", f"--config={file}", f"--topology={topology}", "--json"]
        command += ["--suggest"] if suggest else []
        command += [f"--rows={rows}"] + ([] if price is None else [f"--price={price}"])
        told = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    if told.stdout:  # the status is 1 if the run does not fit
        return json.loads(told.stdout)
    *_, last = told.stderr.splitlines() or [f"exit status {told.returncode}"]
    if told.returncode == 2 and last.startswith("error: "):
        raise UserError(last.removeprefix("error: "))
    raise RuntimeError(f"planning failed:\n{told.stderr}")


def main(argv: list[str]) -> int:
    config = commands.read_config()
    if not FLAGS.topology:
        raise UserError("no topology: give --topology=v5p:2x4x4, h100:2x8, cpu:8 or another")
    target = parse_topology(FLAGS.topology)
    prepare_process(target)
    found = devices(target)

    from gadjax.planning.compiler import Compiler
    from gadjax.planning.plan_report import as_json, as_text
    from gadjax.planning.planner import make_plan
    from gadjax.planning.search import suggest

    def tell(line: str) -> None:
        if not FLAGS.json:
            print(line, file=sys.stderr, flush=True)

    folder = files.user_cache("plans")
    compiler = Compiler(target, found, folder=folder, on_compile=lambda name: tell(f"compiling: {name}"))
    found_by = suggest(config, compiler) if FLAGS.suggest else None
    plan = found_by.plan if found_by else make_plan(config, compiler)
    plan = dataclasses.replace(plan, rows=FLAGS.rows, price=FLAGS.price)
    if compiler.found:
        tell(f"{compiler.found} of {compiler.asked} programs were compiled before")
    if compiler.lost:
        tell(f"{folder} cannot be written ({compiler.lost}): the next plan will compile these programs again")
    if FLAGS.json:
        print(json.dumps(as_json(plan, found_by) | {"compiled_before": compiler.found}, indent=2))
    else:
        print(as_text(plan, found_by, details=FLAGS.details))
    return 1 if plan.misfits else 0


make_callable(__name__)

if __name__ == "__main__":
    define_flags()
    commands.run(main)
