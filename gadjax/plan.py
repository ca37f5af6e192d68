r"""Compiles every program of a run for machines that are not here, and says whether it fits and what it costs.

    python -m gadjax.plan --config=configs/qwen14b.py --topology=v5p:2x4x4
    python -m gadjax.plan --config=configs/qwen7b.py --topology=h100:1x8 --suggest

Only the student's config.json is read. The exit status is 1 if the run does not fit. TPUs need libtpu
(pip install 'gadjax[plan]'), CUDA GPUs need jax[cuda13], cpu:N needs nothing.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.planning.targets import devices, parse_topology, prepare_process

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command's flags. Not on import, so that commands can be imported together."""
    commands.define_config()
    flags.DEFINE_string(
        "topology", None, "CHIP:SHAPE: v5p:2x4x4, v6e:8x8, v5e:16x16, h100:2x8, h200:1x8, a100:1x8, l4:1, cpu:8."
    )
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")
    flags.DEFINE_bool(
        "suggest", False, "Search mesh, micro-batches, rollout slots, remat and offload for the fastest plan that fits."
    )


def main(argv: list[str]) -> int:
    config = commands.read_config()
    if not FLAGS.topology:
        raise UserError("no topology: give --topology=v5p:2x4x4, h100:2x8, cpu:8 or another")
    target = parse_topology(FLAGS.topology)
    prepare_process(target)
    found = devices(target)

    from gadjax.planning.plan_report import as_json, as_text
    from gadjax.planning.planner import make_plan
    from gadjax.planning.search import suggest

    def on_compile(name: str) -> None:
        if not FLAGS.json:
            print(f"compiling: {name}", file=sys.stderr, flush=True)

    found_by = suggest(config, target, found, on_compile) if FLAGS.suggest else None
    plan = found_by.plan if found_by else make_plan(config, target, found, on_compile)
    print(json.dumps(as_json(plan, found_by), indent=2) if FLAGS.json else as_text(plan, found_by))
    return 1 if plan.misfits else 0


if __name__ == "__main__":
    define_flags()
    commands.run(main)
