"""Writes the networks of any checkpoint of a run as Hugging Face directories; the optimizer's state is not read.

    python -m gadjax.export --workdir=/tmp/demo --step=200 --out=DIR

DIR/generator loads as AutoModelForCausalLM, DIR/discriminator as AutoModelForTokenClassification with one label.
"""

from __future__ import annotations

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Those of the command; not on import, so that commands can be imported together."""
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_integer("step", -1, "Step of the checkpoint, counted over all stages; -1 is the last one.")
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)


def main(argv: list[str]) -> None:
    del argv
    from gadjax.checkpoint import Checkpoints
    from gadjax.models import lora
    from gadjax.parallel import mesh as layout
    from gadjax.trainer.exports import NETWORKS, export_network, network_model, read_workdir

    workdir, out = expand(FLAGS.workdir), expand(FLAGS.out)
    config, facts = read_workdir(workdir)
    checkpoints = Checkpoints(workdir)
    saved = checkpoints.steps()
    if not saved:
        raise UserError(f"--workdir {workdir} has no checkpoint yet")
    step = saved[-1] if FLAGS.step == -1 else FLAGS.step
    mesh = layout.make_mesh(data=1, fsdp=-1, tensor=1)
    for network in NETWORKS:
        like = lora.trained(layout.abstract_params(network_model(config, facts, network), mesh))
        params = checkpoints.params(step, network, like)
        if params is not None:
            export_network(workdir, network, params, step, out / network)
            print(f"step {step}: {out / network}")


if __name__ == "__main__":
    define_flags()
    commands.run(main)
