"""Writes the networks of any checkpoint of a run as Hugging Face directories, without reading the optimizer's state.

    python -m gadjax.export --workdir=/tmp/demo --step=200 --out=DIR
    python -m gadjax.export --workdir=/tmp/demo --out=DIR --push=OWNER/NAME

DIR/generator loads as AutoModelForCausalLM, DIR/discriminator as AutoModelForTokenClassification with one label, or
as AutoModelForCausalLM where config.discriminator.kind is likelihood.

--push uploads DIR/generator to the Hugging Face hub, to a private repository unless --public is given. The token is
that of `hf auth login`, or HF_TOKEN. If the upload fails, the same command goes on. Without --workdir, it uploads what
an earlier export left in DIR, such as WORKDIR/export.
"""

from __future__ import annotations

import pathlib

from absl import flags

from gadjax import commands
from gadjax.errors import UserError
from gadjax.files import expand
from gadjax.hub import Upload
from gadjax.version import __version__

FLAGS = flags.FLAGS
_PUSHED = {"generator": "push", "discriminator": "push_discriminator"}  # the flag of each network


def define_flags() -> None:
    """Defines the command's flags; not done on import, so that commands can be imported together."""
    flags.DEFINE_string("workdir", None, "The run's folder. May be left out where --out holds an export to push.")
    flags.DEFINE_string(
        "step", "last", 'Step of the checkpoint, counted over all stages; "last", or "best" (config.checkpoint.best).'
    )
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_string("push", None, "OWNER/NAME on the Hugging Face hub to upload the generator to.")
    flags.DEFINE_string("push_discriminator", None, "OWNER/NAME to upload the discriminator to.")
    flags.DEFINE_boolean("public", False, "Everybody may see what is pushed. Default: the owner alone.")


def main(argv: list[str]) -> None:
    """Writes every network that the checkpoint has, and uploads those that have a name on the hub."""
    del argv

    out = expand(FLAGS.out)
    named = {network: FLAGS[flag].value for network, flag in _PUSHED.items()}
    uploads = {network: Upload(_PUSHED[network], name, FLAGS.public) for network, name in named.items() if name}
    if FLAGS.push and FLAGS.push == FLAGS.push_discriminator:
        raise UserError(f"--push and --push_discriminator both name {FLAGS.push}: give each network its own repository")
    if FLAGS.public and not uploads:
        raise UserError("--public says who may see what is pushed: give --push=OWNER/NAME too")
    if FLAGS.workdir is None and not uploads:
        raise UserError("no run to export: give --workdir")
    for upload in uploads.values():
        upload.check()
    from gadjax.models.save import MARK  # imports JAX

    written = _export(out) if FLAGS.workdir is not None else f"gadjax {__version__}"
    for network, upload in uploads.items():
        if not (out / network / MARK).exists():
            raise UserError(f"{upload}: there is no export in {out / network}; give --workdir, to write one there")
    for network, upload in uploads.items():
        print(upload.describe(out / network), flush=True)
        print(f"pushed: {upload.send(out / network, f'{network}, {written}')}")


def _export(out: pathlib.Path) -> str:
    """Writes the networks; returns a few words about what they are of."""
    from gadjax.models import layouts, lora
    from gadjax.parallel import mesh as meshes
    from gadjax.workdir.checkpoints import Checkpoints
    from gadjax.workdir.facts import NETWORKS, network_model, read_workdir
    from gadjax.workdir.network_export import export_network

    workdir, named = expand(FLAGS.workdir), FLAGS.step
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
    return f"step {step}, gadjax {__version__}"


if __name__ == "__main__":
    define_flags()
    commands.run(main)
