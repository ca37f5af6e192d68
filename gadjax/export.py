"""Writes the networks of any checkpoint of a run as Hugging Face directories; the optimizer's state is not read.

    python -m gadjax.export --workdir=/tmp/demo --step=200 --out=DIR

DIR/generator loads as AutoModelForCausalLM, DIR/discriminator as AutoModelForTokenClassification with one label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand

if TYPE_CHECKING:
    from gadjax.workdir.checkpoints import Checkpoints
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command's flags; not done on import, so that commands can be imported together."""
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_string(
        "step", "last", 'Step of the checkpoint, counted over all stages; "last", or "best" (config.checkpoint.best).'
    )
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)


def main(argv: list[str]) -> None:
    del argv
    from gadjax.models import layouts, lora
    from gadjax.parallel import mesh as meshes
    from gadjax.workdir.checkpoints import Checkpoints
    from gadjax.workdir.facts import NETWORKS, network_model, read_workdir
    from gadjax.workdir.network_export import export_network

    workdir, out = expand(FLAGS.workdir), expand(FLAGS.out)
    config, facts = read_workdir(workdir)
    checkpoints = Checkpoints.of(workdir, config)
    if not checkpoints.steps():
        raise UserError(f"--workdir {workdir} has no checkpoint yet")
    step = _step(checkpoints, FLAGS.step)
    mesh = meshes.make_mesh(data=1, fsdp=-1, tensor=1)
    for network in NETWORKS:
        like = lora.trained(layouts.abstract_params(network_model(config, facts, network), mesh))
        params = checkpoints.params(step, network, like)
        if params is not None:
            export_network(workdir, network, params, step, out / network)
            print(f"step {step}: {out / network}")


def _step(checkpoints: Checkpoints, named: str) -> int:
    if named == "last":
        return checkpoints.steps()[-1]
    if named == "best":
        return checkpoints.best_step()
    if not (named.isascii() and named.isdigit()):
        raise UserError(f"--step={named}: expected a number of steps, last or best")
    return int(named)


if __name__ == "__main__":
    define_flags()
    commands.run(main)
