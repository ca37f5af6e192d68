r"""Distils a student from a teacher's answers: SeqKD, SODA, warmup and GAD, as the config says.

    python -m gadjax.train --config=configs/demo.py --workdir=/tmp/demo
    python -m gadjax.train --config=configs/qwen7b.py --config.data.train=my.parquet \
        --config.student=/models/Qwen2.5-7B-Instruct

Every field of the config can be set as --config.FIELD=VALUE; --help lists them at its end, as does docs/config.md. The
same command in the same workdir continues the run.

Watchdogs warn when the discriminator saturates, answers run away, the KL explodes, the entropy collapses or throughput
drops. The watchdogs that --config.stop_on names (such as kl,length) save and stop the run, with exit status 2.

SIGTERM (a preemption, a time limit) lets the step in progress end, saves it, and exits with status 75: run the command
again. Ctrl-C does the same, with status 130; a second Ctrl-C ends the run at once. Status 0 means that the run is
finished, status 2 that you can mend the error that was printed. If the newest checkpoint is damaged, it is set aside,
and the run continues from the one before.

A workdir belongs to one run. Another student, seed or data is refused, and the message names the difference. --force
continues all the same if the checkpoint fits the new run: it needs the same tokenizer and networks, and with LoRA the
same student.

On several machines every process runs this command, and the processes train as one. Processes that srun or a TPU pod
started find each other; others need --coordinator, --num_processes and --process_id. If a process dies, the others end
within a minute: with status 75 and a line that names it, or by JAX's abort (status 134) if it was process 0.
"""

from __future__ import annotations

import logging
import os
import pathlib
import traceback
from typing import TYPE_CHECKING

from absl import flags

from gadjax import commands
from gadjax.callable_module import make_callable
from gadjax.errors import Stopped, UserError
from gadjax.files import expand, is_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ml_collections import ConfigDict

    from gadjax.distill.losses import PairLoss
    from gadjax.extensions import Callback, Reward
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the command's flags; not done on import, so that commands can be imported together."""
    commands.define_config()
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run: config, metrics, checkpoints, exports. Default: runs/NAME_OF_THE_CONFIG.",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT that process 0 listens on. Not needed under Slurm or on TPUs.")
    flags.DEFINE_integer("num_processes", None, "Number of processes; needed with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0; needed with --coordinator.")
    flags.DEFINE_boolean(
        "force",
        False,
        "Continue a workdir whose run had another seed, data, limits or the like. The differences are printed, and the "
        "steps go on as if the run had been like this from its start. Still refused: another tokenizer; networks that "
        "differ in sizes, positions or adapters; with LoRA, another student; stages without the one in progress.",
    )
    flags.DEFINE_string(
        "profile", None, "STEP or FIRST-LAST, counted as in metrics.jsonl: steps to trace into WORKDIR/profile."
    )


def run(
    config: ConfigDict | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    profile: tuple[int, int] | None = None,
    *,
    force: bool = False,
    reward: Reward | None = None,
    discriminator_loss: PairLoss | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, dict[str, float]]:
    """Trains as `config` says, continuing what `workdir` holds, and exports the result.

    `gadjax.train(config, workdir)` is this function. Called again, also after Ctrl-C or in another process, it goes on
    from the last checkpoint; if the run is finished, it returns the figures once more. With several processes
    (`gadjax.parallel.processes.start`, or `jax.distributed.initialize`) all of them call this.

    Args:
      config: the name of a shipped config, the path of a file with `get_config()`, or a `ConfigDict` from
        `gadjax.load_config`. At least `student` and `data.train` must be set.
      workdir: a local folder, made where it does not exist; None is runs/NAME of a name or file, else runs/default.
      profile: the first and the last step, from 1 over all stages, that JAX's profiler traces into WORKDIR/profile.
      force: continues where the workdir's run had another seed, data or the like, as `--force` does.
      reward: in stage gad, `reward(chats, answers, scores)` gives the reward of each sample in place of the
        discriminator's score: `chats` are messages, `answers` texts, `scores` the discriminator's, float32 [answers].
        It returns one number an answer. With several processes, the first one calls it.
      discriminator_loss: `loss(teacher, student)`, in place of `config.discriminator.loss`: scores [B] of the teacher's
        answers and [B, N] of the samples to the loss [B, N] of each pair, by functions of `jax.numpy`. A
        pair's loss depends on its two scores alone, and has a gradient where they are equal.
      callbacks: each is called after each step with a `gadjax.extensions.StepDone`, in the first process.

    Returns:
      The held-out figures by stage, "before" first: the rows of the table that the command prints.

    Raises:
      UserError: the config, a file or the workdir cannot work, or `config.stop_on` stopped the run; the message says
        what to change.
    """
    from ml_collections import ConfigDict

    from gadjax.config import load_config
    from gadjax.extensions import Extensions
    from gadjax.trainer.session import train_and_export

    if workdir is None:
        workdir = f"runs/{'default' if isinstance(config, ConfigDict) else pathlib.Path(config).stem}"
    if not isinstance(config, ConfigDict):
        config = load_config(config)
    if is_url(workdir):
        raise UserError(
            f"--workdir={workdir}: logs are appended to, which takes a local folder; give one, and for the checkpoints "
            f"--config.checkpoint.directory={workdir}"
        )
    try:
        if callable(callbacks):
            raise UserError("callbacks is a function: give a list, such as callbacks=[watch]")
        extensions = Extensions(reward, discriminator_loss, tuple(callbacks))
        return train_and_export(config, expand(workdir), profile, force=force, extensions=extensions)
    except (KeyboardInterrupt, Stopped, UserError) as error:
        # A notebook keeps the traceback of the last error, whose frames would keep the networks on the devices.
        traceback.clear_frames(error.__traceback__)
        raise


def main(argv: list[str]) -> None:
    config = commands.read_config()
    # A save that fails ends the run with one line. Orbax's other tasks fail with it, and asyncio would print each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    commands.use_whole_memory()
    commands.use_compilation_cache()

    from gadjax.parallel import processes
    from gadjax.trainer.profile import parse_steps

    profile = parse_steps(FLAGS.profile) if FLAGS.profile else None

    processes.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    run(config, FLAGS.workdir or f"runs/{commands.config_name()}", profile, force=FLAGS.force)


make_callable(__name__)

if __name__ == "__main__":
    define_flags()
    commands.run(main)
