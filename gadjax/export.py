"""Writes the networks of any checkpoint of a run as Hugging Face directories, without reading the optimizer's state.

    python -m gadjax.export --workdir=/tmp/demo --step=200 --out=DIR

DIR/generator loads as AutoModelForCausalLM, DIR/discriminator as AutoModelForTokenClassification with one label, or
as AutoModelForCausalLM where config.discriminator.kind is likelihood.
"""

from __future__ import annotations

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command's flags; not done on import, so that commands can be imported together."""
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_string(
        "step", "last", 'Step of the checkpoint, counted over all stages; "last", or "best" (config.checkpoint.best).'
    )
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)


def main(argv: list[str]) -> None:
    """Writes every network that the checkpoint has."""
    del argv
    from gadjax.models import layouts, lora
    from gadjax.parallel import mesh as meshes
    from gadjax.workdir.checkpoints import Checkpoints
    from gadjax.workdir.facts import NETWORKS, network_model, read_workdir
    from gadjax.workdir.network_export import export_network

    workdir, out, named = expand(FLAGS.workdir), expand(FLAGS.out), FLAGS.step
    config, facts = read_workdir(workdir)
    checkpoints = Checkpoints.of(workdir, config)
    # The checkpoint's step.
    if not (saved := checkpoints.steps()):
        raise UserError(f"--workdir {workdir} has no checkpoint yet")
    if named in ("last", "best"):
        step = saved[-1] if named == "last" else checkpoints.best_step()
    elif named.isascii() and named.isdigit():
        step = int(named)
    else:
        raise UserError(f"--step={named}: expected a number of steps, last or best")
    # Parameters are read spread over all devices.
    mesh = meshes.make_mesh(data=1, fsdp=-1, tensor=1)
    for network in NETWORKS:
        like = lora.trained(layouts.abstract_params(network_model(config, facts, network), mesh))
        params = checkpoints.params(step, network, like)
        if params is not None:
            export_network(workdir, network, params, step, out / network)
            print(f"step {step}: {out / network}")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
